"""The review page: a worklist of dropped images, one of them open, and marks that are saved at once.

Knows gradio, worklists and their looks; knows nothing of models' insides or of SQL. What the browser shows
comes inside the page's own messages: no picture is written to the disk or has an address. Nothing is
loaded from outside this machine.
"""

from __future__ import annotations

import hmac
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

from ...core.errors import DataError
from ...deploy.predictor import Inferencer
from ..middleware import LOG
from . import view
from .door import Door
from .store import AGREE, DISAGREE, Reviews, as_csv
from .worklist import SHOWN, Row, Worklist, Worklists

try:
    import gradio as gr
    import gradio.routes
except ImportError as error:
    raise DataError("the review page needs gradio: pip install 'dia-anomaly[serve]'") from error

MOST_BYTES = "1gb"  # of one file; `door.py` limits what is dropped at once
_MOST_NAME = 100  # characters of a reviewer's name, which stands in every mark
_T = 200  # where the dissolve slider starts: the third strength of the poster's four
_ABANDONED = 600  # seconds after which an upload that was never read is deleted
_HERE = Path(__file__).parent
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
_LIST_JS = """
watch('value', dia.list(element));
element.addEventListener('click', (event) => {
  const sort = event.target.closest('[data-sort]'), row = event.target.closest('[data-sha]');
  if (sort) trigger('sort_by', {key: sort.dataset.sort});
  else if (row) {
    dia.follow = true;
    if (row.dataset.sha === dia.opened) dia.select(dia.opened);  // nothing changes that would lead there
    trigger('pick', {sha: row.dataset.sha});
  }
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
    # read when gradio was imported; it makes a folder there, which may be another user's
    gradio.routes.DEFAULT_TEMP_DIR = uploads.name
    page = _Page(inferencer, reviews)
    page.uploads = uploads
    app = gr.mount_gradio_app(
        app, page.blocks, path="/", footer_links=[], run_history=False, ssr_mode=False,
        max_file_size=MOST_BYTES, show_error=False, theme=_theme(),
        head=f"<style>{(_HERE / 'page.css').read_text()}</style>"
        f"<script>{(_HERE / 'page.js').read_text()}</script>",
        auth=None if token is None else lambda _, said: hmac.compare_digest(said.encode(), token.encode()),
        auth_message="Your name is kept with your marks. The password is the token that dia serve was given.",
    )  # fmt: skip
    mounted = next(r for r in app.routes if isinstance(r, Mount) and r.path == "")
    mounted.app = Door(mounted.app, Path(uploads.name), app.state.attempts if token else None)
    return app


def _theme() -> Any:
    theme = gr.themes.Base(primary_hue="blue", font=_FONT, font_mono=["ui-monospace", "monospace"])
    return theme.set(  # its own are too pale to read
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600", input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """The contents of a browser window after an event in it.

    Args:
        work: that window's list.
        reviewer: the name given at the login, or "".
        sha: the image that is open, or "".
        rate: of false alarms, in (0, 1).
        order: a key of `SORTS`, a blank, `up` or `down`.
        show: a key of `SHOWN`.
    """

    work: Worklist
    reviewer: str
    sha: str
    rate: float
    order: str
    show: str

    @property
    def key(self) -> str:
        """The column sorted by."""
        return self.order.split()[0]

    @property
    def descending(self) -> bool:
        """Returns whether the greatest comes first."""
        return self.order.endswith("down")

    def rows(self, show: str) -> list[Row]:
        """The rows, in order."""
        return self.work.rows(self.rate, self.key, self.descending, show)

    def row(self) -> Row | None:
        """Returns the row of the open image."""
        return self.work.row(self.sha, self.rate)


class _Page:
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
        kept = (_ABANDONED, _ABANDONED)
        with gr.Blocks(
            title="DIA review", analytics_enabled=False, fill_width=True, delete_cache=kept
        ) as self.blocks:
            self._parts()
            self._events()

    def _parts(self) -> None:
        percent, last = 100 * self.inferencer.rate, max(self.inferencer.t_max - 1, 1)
        dissolves, has_heatmaps = self.inferencer.can_dissolve, self.inferencer.has_heatmaps
        self.current = gr.Textbox("", visible="hidden", elem_id="current")
        self.order = gr.Textbox("score down", visible="hidden")
        self.csv = gr.Textbox("", visible="hidden")
        self.written = gr.Button(visible="hidden", elem_id="written")
        _html("header", view.header(self.inferencer.about()) + view.keys())
        with gr.Row(elem_id="review"):
            with gr.Column(scale=2, min_width=450, elem_id="left"):
                self.files = gr.File(
                    label="Drop images here, one or many", file_count="multiple", height=110, elem_id="drop"
                )
                self.status = _html("status")
                self.drift = _html("drift")
                self.rate = _slider("rate", "False-alarm rate, %", 0.1, 50, percent, step=0.1)
                self.meaning = _html("meaning", view.meaning(percent / 100, self.n))
                choices = [(s.capitalize(), s) for s in SHOWN]
                self.show = gr.Radio(choices, value="all", label="Show", elem_id="show")
                self.table = _html("list", view.table([], [], "score", True), js_on_load=_LIST_JS)
                with gr.Row():
                    self.export = _button("export", "Export this list (CSV)")
                    self.export_all = _button("export-all", "Export all saved marks (CSV)")
            with gr.Column(scale=5, min_width=320, elem_id="detail", visible=False) as self.detail:
                self.title = _html("title")
                with gr.Row(elem_id="marking"):
                    self.previous = _button("previous", "‹ Previous")
                    self.agree = _button("agree", "✓ Agree")
                    self.disagree = _button("disagree", "✗ Disagree")
                    self.undo = _button("undo", "Undo")
                    self.next = _button("next", "Next ›")
                self.state = _html("state")
                self.note = gr.Textbox(
                    label="Note", lines=1, max_lines=6, max_length=2000, elem_id="note",
                    placeholder="Saved while you write. No names, please.",
                )  # fmt: skip
                with gr.Row(elem_id="pictures"):
                    with gr.Column(min_width=240, scale=4):
                        self.picture = _html("picture")
                        self.opacity = _slider(
                            "opacity", "Heatmap opacity, %", 0, 100, 60, visible=has_heatmaps
                        )
                    with gr.Column(min_width=240, scale=6):
                        self.dissolved = _html("dissolved")
                        self.t = _slider(
                            "dissolve-t", "Dissolve, t", 0, last, min(_T, last), visible=dissolves
                        )
                self.nearest = _html("nearest")

    def _events(self) -> None:
        shown = [self.current, self.rate, self.order, self.show]
        listed = [self.table, self.meaning, self.title, self.state]
        opened = [self.table, self.status, self.current, self.detail, self.title, self.state, self.note,
                  self.picture]  # fmt: skip
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # answered each for itself: a queue's stream of answers closes when all is answered, and can miss what
        # is asked at that moment
        direct = quiet | {"queue": False}
        last: dict[str, Any] = {"trigger_mode": "always_last"}

        def opens(event: Any) -> None:
            event.then(self._on(self.draw_dissolved), [*shown, self.t], self.dissolved, **direct)
            event.then(self._on(self.draw_nearest), shown, self.nearest, **direct)

        outputs = [self.files, self.drift, *opened]
        opens(self.files.upload(self.take, [self.files, *shown], outputs, concurrency_limit=4, **quiet))
        opens(self.table.pick(self._on_event(self.pick), shown, opened, **direct))
        for button, by in ((self.next, 1), (self.previous, -1)):
            opens(button.click(self._on(self.go, by), shown, opened, **direct))
        self.table.sort_by(self._on_event(self.sort), shown, [self.order, *listed], **direct)
        self.show.change(self._on(self.refresh), shown, listed, **direct)
        self.rate.change(self._on(self.refresh), shown, listed, **last, **direct)
        for button, verdict in ((self.agree, AGREE), (self.disagree, DISAGREE), (self.undo, "")):
            button.click(self._on(self.judge, verdict), shown, listed, **direct)
        self.written.click(self._on(self.write), [*shown, self.note], self.state, **last, **direct)
        each: dict[str, Any] = {"trigger_mode": "multiple"}
        self.note.blur(self._on(self.leave), [*shown, self.note], listed, **each, **direct)
        self.t.change(self._on(self.draw_dissolved), [*shown, self.t], self.dissolved, **last, **direct)
        for button, fn, what in (
            (self.export, self.list_csv, "list"),
            (self.export_all, self.all_csv, "marks"),
        ):
            js = f"(text) => dia.save(text, 'dia-{what}.csv')"
            button.click(self._on(fn), shown, self.csv, **direct).then(None, self.csv, None, js=js)
        # in the browser alone
        self.opacity.change(None, self.opacity, None, js="(percent) => dia.opacity(percent)")
        self.current.change(None, self.current, None, js="(sha) => dia.select(sha)")

    def _ask(self, request: gr.Request, sha: str, percent: float, order: str, show: str) -> _Asked:
        lst = self.lists[request.session_hash or ""]
        return _Asked(lst, (request.username or "")[:_MOST_NAME], sha, percent / 100, order, show)

    def _on(self, fn: Callable[..., Any], *first: Any) -> Callable[..., Any]:
        """`fn` of what is asked, of `first`, and of the inputs after those of `_Asked`."""

        def handler(request: gr.Request, *values: Any) -> Any:
            return fn(self._ask(request, *values[:4]), *first, *values[4:])

        return handler

    def _on_event(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` of what is asked, and of what the list says of the click."""

        def handler(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
            return fn(self._ask(request, *values), event)

        return handler

    # --- images in, one open ------------------------------------------------------------------------

    def take(self, request: gr.Request, files: list[str] | None, *values: Any) -> Iterator[Update]:
        """Reads what was dropped, a few files at a time, and deletes it."""
        a, paths = self._ask(request, *values), [Path(f) for f in files or ()]
        problems: list[tuple[str, str]] = []
        before = len(a.work)
        yield {self.files: None, self.status: view.progress(0, len(paths))}
        try:
            for n, found in a.work.add(paths):
                problems += found
                yield {self.status: view.progress(n, len(paths)), self.table: _table(a)}
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
        update: Update = {
            self.status: view.done(len(paths), len(a.work) - before, problems),
            self.drift: view.drift(a.work.drift() if len(a.work) else None),
        }
        if not a.sha and (rows := a.rows(a.show)):
            update |= self.open(a, rows[0].sha256)
        yield update

    def pick(self, a: _Asked, event: gr.EventData) -> Update:
        """Opens the row that was clicked."""
        return self.open(a, str(event.sha))

    def go(self, a: _Asked, by: int) -> Update:
        """Opens the next image (1), or the one before (−1), of those shown."""
        rows = a.rows("all")  # the open one may be filtered out by now
        here = next((i for i, r in enumerate(rows) if r.sha256 == a.sha), None)
        if here is None:
            return self.open(a, a.sha)
        ahead = rows[here + 1 :] if by > 0 else rows[:here][::-1]
        found = next((r for r in ahead if SHOWN[a.show](r)), None)
        return self.open(a, found.sha256) if found else {self.current: a.sha}

    def open(self, a: _Asked, sha: str) -> Update:
        """Opens an image. Where it is held no more (the server was started anew), says so."""
        a = replace(a, sha=sha)
        if (row := a.row()) is None:
            return {
                self.current: "", self.detail: gr.update(visible=False), self.table: _table(a),
                self.status: view.gone(),
            }  # fmt: skip
        a.work.open = sha
        return {
            self.current: sha, self.detail: gr.update(visible=True), self.title: _title(a, row),
            self.state: view.state(row), self.note: row.mark.note if row.mark else "",
            self.picture: view.picture(row, self.inferencer.heat_scale),
        }  # fmt: skip

    def draw_dissolved(self, a: _Asked, t: float) -> Any:
        """The open image dissolved at t, with the residual."""
        if (row := a.row()) is None or a.sha != a.work.open:
            return gr.skip()
        if not self.inferencer.can_dissolve:
            return view.no_dissolver(self.inferencer.detector.method)
        return view.dissolved(row, a.work.dissolved(row, int(t)), int(t))

    def draw_nearest(self, a: _Asked) -> Any:
        """The normals nearest to the open image."""
        if (row := a.row()) is None or a.sha != a.work.open:
            return gr.skip()
        return view.nearest(a.work.nearest(row), self.inferencer.why_no_normals)

    # --- the list -----------------------------------------------------------------------------------

    def refresh(self, a: _Asked) -> Update:
        """The list, and what is said of the open image; nothing is scored anew."""
        update: Update = {self.table: _table(a), self.meaning: view.meaning(a.rate, self.n)}
        # an answer that comes late says nothing of another image
        if a.sha == a.work.open and (row := a.row()):
            update |= {self.title: _title(a, row), self.state: view.state(row)}
        return update

    def sort(self, a: _Asked, event: gr.EventData) -> Update:
        """By the column that was clicked; the other way round where it was sorted by that."""
        down = not a.descending if event.key == a.key else event.key not in ("name", "p_value")
        a = replace(a, order=f"{event.key} {'down' if down else 'up'}")
        return self.refresh(a) | {self.order: a.order}

    # --- marks --------------------------------------------------------------------------------------

    def judge(self, a: _Asked, verdict: str) -> Update:
        """Saves that the flag is right or wrong, or takes it back; the note stays."""
        return self._mark(a, verdict=verdict)

    def write(self, a: _Asked, note: str) -> Any:
        """Saves the note while it is written."""
        return self._mark(a, note=note).get(self.state, gr.skip())

    def leave(self, a: _Asked, note: str) -> Update:
        """Saves the note when the field is left, and shows it in the list."""
        return self._mark(a, note=note)

    def _mark(self, a: _Asked, **what: str) -> Update:
        try:
            row = a.work.mark(a.sha, a.rate, reviewer=a.reviewer, **what)
        except DataError as error:
            LOG.error("%s", error)
            raise gr.Error("Not saved: the server's log says why.", duration=None) from error
        if row is None:
            raise gr.Error("Not saved: this window's images are held no more; please drop them again.")
        return self.refresh(a)

    def list_csv(self, a: _Asked) -> str:
        """One line per image of this window."""
        return as_csv(a.work.marks(a.rate))

    def all_csv(self, a: _Asked) -> str:
        """Every mark made with this model."""
        return as_csv(a.work.reviews.of_model(a.work.model))


def _html(name: str, value: str = "", **more: Any) -> Any:
    return gr.HTML(value, elem_id=name, apply_default_css=False, **more)


def _button(name: str, text: str) -> Any:
    return gr.Button(text, size="sm", elem_id=name)


def _slider(name: str, text: str, low: float, high: float, value: float, step: float = 1, **more: Any) -> Any:
    return gr.Slider(low, high, value, step=step, label=text, buttons=[], elem_id=name, **more)


def _table(a: _Asked) -> str:
    return view.table(a.rows(a.show), a.rows("all"), a.key, a.descending)


def _title(a: _Asked, row: Row) -> str:
    rows = a.rows(a.show)
    place = next((i for i, r in enumerate(rows, 1) if r.sha256 == row.sha256), None)
    return view.title(row, place, len(rows), a.rate)
