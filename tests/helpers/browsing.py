"""The reading room in a real browser: a server on a socket of this machine, windows that hear complaints.

`DIA_BROWSER` names a Chromium; `DIA_SHOTS=folder` keeps a picture of each step.
"""

import hashlib
import os
import shutil
import socket
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

FRAME = "() => new Promise((yes) => requestAnimationFrame(() => requestAnimationFrame(yes)))"


@contextmanager
def chromium():
    """A browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="pages are tested with playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("DIA_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium found; name one with DIA_BROWSER")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    api.expect.set_options(timeout=60_000)  # other work may hold the machine
    with (
        api.sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] * root)) as browser,
    ):
        yield browser


@contextmanager
def serving_room(inferencer, run, folder, token=None):
    """The address of a reading room with a model in use.

    Args:
        inferencer: the model, loaded; None for a room without one.
        run: its folder.
        folder: where marks and trained models go.
        token: that the room asks for.
    """
    from dia.serve.api import build_app
    from dia.serve.current import Current
    from dia.serve.limits import Limits
    from dia.serve.room.base import Room
    from dia.serve.room.store import Marks
    from dia.serve.server import make_server
    from dia.serve.sessions import Sessions

    limits = Limits()
    current = Current(limits, device="cpu")
    if inferencer is not None:
        current.use(inferencer, run)
    folder.mkdir(parents=True, exist_ok=True)
    room = Room(current, Sessions(), limits, Marks(folder / "marks.sqlite"), folder / "runs")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        running = make_server(build_app(current, token, room=room))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


class Window:
    """A window of a page, and what it asked for and complained of."""

    def __init__(self, browser, url, width=1440, height=900, **context):
        from playwright.sync_api import expect

        self.expect = expect
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.requests, self.complaints, self.url, self.step = [], [], url, 0
        self.allowed = ()  # parts of complaints that a test brings about
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.goto(url)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.shot("end")
            assert [u for u in self.requests if not u.startswith((self.url, "blob:"))] == []
            assert [c for c in self.complaints if not any(a in c for a in self.allowed)] == []
        self.context.close()

    def at(self, selector, **more):
        return self.page.locator(selector, **more)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def sees(self, selector, words):
        self.expect(self.at(selector)).to_contain_text(words)

    def until(self, found):
        """Waits until `found()` is true, while events of the page come in."""
        for _ in range(1200):
            if found():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError("it never came")

    def frame(self):
        """Waits until what was asked for is drawn."""
        self.page.evaluate(FRAME)

    def drawn(self, selector="#tiles canvas >> nth=0"):
        """A hash of what a canvas shows."""
        self.frame()
        return hashlib.sha256(self.at(selector).evaluate("(c) => c.toDataURL()").encode()).hexdigest()

    def shot(self, what):
        if folder := os.environ.get("DIA_SHOTS"):
            self.step += 1
            width = self.page.viewport_size["width"]
            test = os.environ.get("PYTEST_CURRENT_TEST", "::shots").split("::")[1].split(" ")[0]
            self.page.screenshot(path=Path(folder) / test / f"{self.step:02d}-{what}-{width}.png")


class ReadingWindow(Window):
    """A window of the reading page."""

    def drop(self, files, cases):
        """Hands files, or a folder, in; waits until so many cases are listed and nothing is read any more."""
        if isinstance(files, Path):
            self.at("#folder").set_input_files(files)
        else:
            self.at("#files").set_input_files([str(f) for f in files])
        self.expect(self.at("#rows table")).to_have_attribute("aria-rowcount", str(cases + 1))
        self.expect(self.at("#progress")).to_be_hidden()

    def row(self, name):
        return self.at("#body tr[data-id]", has=self.at(f'b[title="{name}"]'))

    def open(self, name):
        self.row(name).click()
        self.opened(name)

    def opened(self, name):
        """Waits until this image is shown."""
        self.expect(self.at("#case-name")).to_have_text(name)
        self.sees(".corner.name", name)
        self.shown()

    def shown(self, slice=None):
        """Waits until the image, or this slice of it, is drawn."""
        import re

        self.expect(self.at("#stage")).to_have_attribute(
            "data-shown", re.compile(r"/\d+$" if slice is None else f"/{slice}$")
        )
        self.frame()

    def column(self, what):
        return [t.strip() for t in self.at(f"#body tr[data-id] td.{what}").all_inner_texts()]

    def names(self):
        return [n.get_attribute("title") for n in self.at("#body tr[data-id] .text b").all()]

    def saved(self):
        self.expect(self.at("#saving.saved")).to_be_visible()

    def middle(self, dx=0.0, dy=0.0):
        """A place in the first tile, from its middle, in shares of its size."""
        box = self.at("#tiles canvas >> nth=0").bounding_box()
        return box["x"] + box["width"] * (0.5 + dx), box["y"] + box["height"] * (0.5 + dy)

    def drag(self, start, end, button="left"):
        self.page.mouse.move(*start)
        self.page.mouse.down(button=button)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up(button=button)
        self.frame()
