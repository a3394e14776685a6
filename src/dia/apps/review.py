"""The review page: a worklist of dropped images, one of them open, and marks that are saved at once.

Knows gradio, worklists and their looks; knows nothing of models' insides or of SQL. What the browser shows
comes inside the page's own messages: no picture is written to the disk or has an address. Nothing is
loaded from outside this machine.
"""

from __future__ import annotations

import hmac
import os
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ..data.imageset import DataError
from . import review_view as view
from .inferencer import Inferencer
from .reviews import AGREE, DISAGREE, Reviews, as_csv
from .worklist import SHOWN, Row, Worklist, Worklists

try:
    import gradio as gr
except ImportError as error:
    raise DataError("the review page needs gradio: pip install 'dia-anomaly[serve]'") from error

MOST_BYTES = "1gb"  # of one file
_T = 200  # where the dissolve slider starts: the third strength of the poster's four
_ABANDONED = 600  # seconds after which an upload that was never read is deleted
_HERE = Path(__file__).parent
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
_LIST_JS = """
watch('value', dia.list(element));
element.addEventListener('click', (event) => {
  const sort = event.target.closest('[data-sort]'), row = event.target.closest('[data-sha]');
  if (sort) trigger('sort_by', {key: sort.dataset.sort});
  else if (row) { dia.follow = true; trigger('pick', {sha: row.dataset.sha}); }
});
"""
Update = dict[Any, Any]  # of components


def mount(app: FastAPI, inferencer: Inferencer, *, store: Path, token: str | None) -> FastAPI:
    """Puts the page at `/` of `app`.

    Args:
        app: whose other routes stay as they are; its lifespan must run, as it does under uvicorn.
        inferencer: the model.
        store: SQLite file of the marks, made where it is absent.
        token: what the page asks for, as a password, before it shows anything; None to ask for nothing.

    Raises:
        DataError: `store` cannot be used.
    """
    reviews = Reviews(store)
    uploads = tempfile.TemporaryDirectory(prefix="dia-uploads-")  # for its owner only; deleted at exit
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    page = Page(inferencer, reviews)
    page.uploads = uploads
    return gr.mount_gradio_app(
        app, page.blocks, path="/", footer_links=[], run_history=False, ssr_mode=False,
        max_file_size=MOST_BYTES, show_error=True,
        theme=gr.themes.Base(primary_hue="blue", font=_FONT, font_mono=["ui-monospace", "monospace"]),
        css_paths=_HERE / "review.css", head=f"<script>{(_HERE / 'review.js').read_text()}</script>",
        auth=None if token is None else lambda _, password: hmac.compare_digest(password, token),
        auth_message="Your name is kept with your marks. The password is the token that dia serve was given.",
    )  # fmt: skip


class Page:
    """The page's parts and events.

    The browser says with each event which image it shows, so a mark or a note goes to the image it was
    meant for, whatever else is under way.

    Args:
        inferencer: the model.
        reviews: where marks are kept.
    """

    uploads: tempfile.TemporaryDirectory[str]

    def __init__(self, inferencer: Inferencer, reviews: Reviews):
        self.inferencer = inferencer
        self.lists = Worklists(inferencer, reviews)
        self.n = int(inferencer.about()["n_calibration"])
        with gr.Blocks(
            title="DIA review", analytics_enabled=False, fill_width=True, delete_cache=(_ABANDONED, _ABANDONED)
        ) as self.blocks:
            self._parts()
            self._events()
        self.blocks.queue(default_concurrency_limit=1)

    def _parts(self) -> None:
        percent = 100 * self.inferencer.rate
        self.current = gr.Textbox("", visible="hidden", elem_id="current")
        self.order = gr.Textbox("score down", visible="hidden")
        self.csv = gr.Textbox("", visible="hidden")
        gr.HTML(view.header(self.inferencer.about()) + view.keys(), elem_id="header", apply_default_css=False)
        with gr.Row(elem_id="review"):
            with gr.Column(scale=5, min_width=320, elem_id="left"):
                self.files = gr.File(
                    label="Drop images here, one or many", file_count="multiple", height=130, elem_id="drop"
                )
                self.status = gr.HTML("", elem_id="status", apply_default_css=False)
                self.rate = gr.Slider(
                    0.1, 50, percent, step=0.1, label="False-alarm rate, %", buttons=[], elem_id="rate"
                )
                self.meaning = gr.HTML(self._meaning(percent), elem_id="meaning", apply_default_css=False)
                self.show = gr.Radio(
                    [(s.capitalize(), s) for s in SHOWN], value="all", label="Show", elem_id="show"
                )
                self.table = gr.HTML(
                    view.table([], [], "score", True), elem_id="list", apply_default_css=False, js_on_load=_LIST_JS
                )
                with gr.Row():
                    self.export = gr.Button("Export this list (CSV)", size="sm", elem_id="export")
                    self.export_all = gr.Button("Export all saved marks (CSV)", size="sm", elem_id="export-all")
            with gr.Column(scale=7, min_width=320, elem_id="detail", visible=False) as self.detail:
                self.title = gr.HTML("", elem_id="title", apply_default_css=False)
                with gr.Row(elem_id="marking"):
                    self.previous = gr.Button("‹ Previous", size="sm", elem_id="previous")
                    self.agree = gr.Button("✓ Agree", size="sm", elem_id="agree")
                    self.disagree = gr.Button("✗ Disagree", size="sm", elem_id="disagree")
                    self.undo = gr.Button("Undo", size="sm", elem_id="undo")
                    self.next = gr.Button("Next ›", size="sm", elem_id="next")
                self.state = gr.HTML("", elem_id="state", apply_default_css=False)
                self.note = gr.Textbox(
                    label="Note", lines=1, max_lines=6, max_length=2000, elem_id="note",
                    placeholder="Saved while you write. No names, please.",
                )  # fmt: skip
                with gr.Row(elem_id="pictures"):
                    with gr.Column(min_width=240, scale=1):
                        self.picture = gr.HTML("", elem_id="picture", apply_default_css=False)
                        self.opacity = gr.Slider(
                            0, 100, 60, step=1, label="Heatmap opacity, %", buttons=[], elem_id="opacity",
                            visible=self.inferencer.has_heatmaps,
                        )  # fmt: skip
                    with gr.Column(min_width=240, scale=2):
                        self.dissolved = gr.HTML("", elem_id="dissolved", apply_default_css=False)
                        self.t = gr.Slider(
                            0, max(self.inferencer.t_max - 1, 1), min(_T, max(self.inferencer.t_max - 1, 0)), step=1,
                            label="Dissolve, t", buttons=[], elem_id="dissolve-t",
                            visible=self.inferencer.can_dissolve,
                        )  # fmt: skip
                self.nearest = gr.HTML("", elem_id="nearest", apply_default_css=False)

    def _events(self) -> None:
        shown = [self.rate, self.order, self.show]
        opened = [self.current, self.detail, self.title, self.state, self.note, self.picture, self.dissolved,
                  self.nearest]  # fmt: skip
        listed = [self.table, self.title, self.state]
        # one at a time in each lane, so answers come in the order of the questions
        light = {"concurrency_id": "light", "show_progress": "hidden", "api_visibility": "private"}
        model = {"concurrency_id": "model", "show_progress": "hidden", "api_visibility": "private"}

        def opens(event: Any) -> None:
            event.then(self.draw_dissolved, [self.current, self.t], self.dissolved, **model)
            event.then(self.draw_nearest, self.current, self.nearest, **model)

        took = self.files.upload(
            self.take, [self.files, self.current, *shown], [self.files, self.status, self.table, *opened],
            show_progress="hidden", concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
        opens(took)
        opens(self.table.pick(self.pick, shown, [self.table, self.status, *opened], **light))
        for button, fn in ((self.next, self.go_next), (self.previous, self.go_previous)):
            opens(button.click(fn, [self.current, *shown], [self.table, self.status, *opened], **light))
        self.table.sort_by(self.sort, [self.current, *shown], [self.order, *listed], **light)
        self.show.change(self.refresh, [self.current, *shown], listed, **light)
        self.rate.change(
            self.new_rate, [self.current, *shown], [self.meaning, *listed], trigger_mode="always_last", **light
        )
        for button, fn in ((self.agree, self.do_agree), (self.disagree, self.do_disagree), (self.undo, self.do_undo)):
            button.click(fn, [self.current, *shown], listed, **light)
        note = [self.current, self.note, *shown]
        self.note.input(self.write, note, self.state, trigger_mode="always_last", **light)
        self.note.blur(self.write_and_list, note, listed, trigger_mode="multiple", **light)
        self.t.change(
            self.draw_dissolved, [self.current, self.t], self.dissolved, trigger_mode="always_last", **model
        )
        # in the browser alone
        self.opacity.change(None, self.opacity, None, js="(percent) => dia.opacity(percent)")
        self.current.change(None, self.current, None, js="(sha) => dia.select(sha)")
        for button, fn, what in ((self.export, self.list_csv, "list"), (self.export_all, self.all_csv, "marks")):
            button.click(fn, self.rate, self.csv, **light).then(
                None, self.csv, None, js=f"(text) => dia.save(text, 'dia-{what}.csv')"
            )

    # --- images in, one open ------------------------------------------------------------------------

    def take(
        self, files: list[str] | None, sha: str, rate: float, order: str, show: str, request: gr.Request
    ) -> Iterator[Update]:
        """Reads what was dropped, a few files at a time, and deletes it."""
        lst, paths = self._list(request), [Path(f) for f in files or ()]
        problems: list[tuple[str, str]] = []
        before = len(lst)
        yield {self.files: None, self.status: view.progress(0, len(paths))}
        try:
            for n, found in lst.add(paths):
                problems += found
                yield {self.status: view.progress(n, len(paths)), self.table: self._table(lst, rate, order, show)}
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
        update: Update = {self.status: view.done(len(paths), len(lst) - before, problems)}
        rows = lst.rows(rate / 100, *_order(order), show)
        if not sha and rows:
            update |= self._open(lst, rows[0].sha256, rate, order, show)
        yield update

    def pick(self, rate: float, order: str, show: str, event: gr.EventData, request: gr.Request) -> Update:
        """Opens the row that was clicked."""
        return self._open(self._list(request), str(event.sha), rate, order, show)

    def go_next(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Opens the next image."""
        return self._go(1, sha, rate, order, show, request)

    def go_previous(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Opens the one before."""
        return self._go(-1, sha, rate, order, show, request)

    def _go(self, by: int, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        lst = self._list(request)
        rows = lst.rows(rate / 100, *_order(order))  # of all: the open one may be filtered out by now
        here = next((i for i, r in enumerate(rows) if r.sha256 == sha), None)
        if here is None:
            return self._open(lst, sha, rate, order, show)
        ahead = rows[here + 1 :] if by > 0 else rows[:here][::-1]
        found = next((r for r in ahead if SHOWN[show](r)), None)
        return self._open(lst, found.sha256, rate, order, show) if found else {self.current: sha}

    def _open(self, lst: Worklist, sha: str, rate: float, order: str, show: str) -> Update:
        if (row := lst.row(sha, rate / 100)) is None:  # the server was started anew, or the list forgotten
            gone = "The images of this window are held no more: please drop them again. Saved marks are kept."
            return {
                self.current: "", self.detail: gr.update(visible=False),
                self.table: self._table(lst, rate, order, show), self.status: gone,
            }  # fmt: skip
        lst.open = sha
        return {
            self.current: sha, self.detail: gr.update(visible=True),
            self.title: self._title(lst, row, rate, order, show), self.state: view.state(row),
            self.note: row.mark.note if row.mark else "",
            self.picture: view.picture(row, self.inferencer.heat_scale),
        }  # fmt: skip

    def draw_dissolved(self, sha: str, t: float, request: gr.Request) -> str | Update:
        """The open image dissolved at t, with the residual."""
        lst = self._list(request)
        if (row := lst.row(sha, 0.5)) is None or sha != lst.open:
            return gr.skip()
        if not self.inferencer.can_dissolve:
            return f"<p class='empty'>{self.inferencer.detector.method} does not dissolve images.</p>"
        return view.dissolved(row, lst.dissolved(row, int(t)), int(t))

    def draw_nearest(self, sha: str, request: gr.Request) -> str | Update:
        """The normals nearest to the open image."""
        lst = self._list(request)
        if (row := lst.row(sha, 0.5)) is None or sha != lst.open:
            return gr.skip()
        return view.nearest(lst.nearest(row), self.inferencer.why_no_normals)

    # --- the list -----------------------------------------------------------------------------------

    def refresh(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """The list, and what is said of the open image."""
        lst = self._list(request)
        update: Update = {self.table: self._table(lst, rate, order, show)}
        if row := lst.row(sha, rate / 100):
            update |= {self.title: self._title(lst, row, rate, order, show), self.state: view.state(row)}
        return update

    def sort(
        self, sha: str, rate: float, order: str, show: str, event: gr.EventData, request: gr.Request
    ) -> Update:
        """By the column that was clicked; the other way round where it was sorted by that."""
        key, descending = _order(order)
        down = not descending if key == event.key else event.key in ("score", "flagged", "verdict", "note")
        order = f"{event.key} {'down' if down else 'up'}"
        return {self.order: order} | self.refresh(sha, rate, order, show, request)

    def new_rate(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Flags anew; nothing is scored anew."""
        return {self.meaning: self._meaning(rate)} | self.refresh(sha, rate, order, show, request)

    # --- marks --------------------------------------------------------------------------------------

    def do_agree(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Saves that the flag is right."""
        return self._mark(sha, rate, order, show, request, verdict=AGREE)

    def do_disagree(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Saves that the flag is wrong."""
        return self._mark(sha, rate, order, show, request, verdict=DISAGREE)

    def do_undo(self, sha: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Takes the verdict back; the note stays."""
        return self._mark(sha, rate, order, show, request, verdict="")

    def write(self, sha: str, note: str, rate: float, order: str, show: str, request: gr.Request) -> Update:
        """Saves the note while it is written."""
        found = self._mark(sha, rate, order, show, request, note=note)
        return {self.state: found.get(self.state, gr.skip())}

    def write_and_list(
        self, sha: str, note: str, rate: float, order: str, show: str, request: gr.Request
    ) -> Update:
        """Saves the note when it is left."""
        return self._mark(sha, rate, order, show, request, note=note)

    def _mark(self, sha: str, rate: float, order: str, show: str, request: gr.Request, **what: str) -> Update:
        lst = self._list(request)
        try:
            row = lst.mark(sha, rate / 100, reviewer=request.username or "", **what)
        except DataError as error:
            raise gr.Error(str(error), duration=None) from error
        if row is None:
            raise gr.Error("Not saved: the images of this window are held no more; please drop them again.")
        found = self.refresh(sha, rate, order, show, request)
        return found if sha == lst.open else {self.table: found[self.table]}

    def list_csv(self, rate: float, request: gr.Request) -> str:
        """One line per image of this window."""
        return as_csv(self._list(request).marks(rate / 100))

    def all_csv(self, rate: float, request: gr.Request) -> str:
        """Every mark made with this model."""
        lst = self._list(request)
        return as_csv(lst.reviews.of_model(lst.model))

    # --- parts --------------------------------------------------------------------------------------

    def _list(self, request: gr.Request) -> Worklist:
        return self.lists[request.session_hash or ""]

    def _table(self, lst: Worklist, rate: float, order: str, show: str) -> str:
        key, descending = _order(order)
        return view.table(lst.rows(rate / 100, key, descending, show), lst.rows(rate / 100), key, descending)

    def _title(self, lst: Worklist, row: Row, rate: float, order: str, show: str) -> str:
        rows = lst.rows(rate / 100, *_order(order), show)
        place = next((i for i, r in enumerate(rows, 1) if r.sha256 == row.sha256), None)
        return view.title(row, place, len(rows), rate / 100)

    def _meaning(self, percent: float) -> str:
        return view.meaning(percent / 100, self.n)


def _order(order: str) -> tuple[str, bool]:
    key, _, way = order.partition(" ")
    return key, way == "down"
