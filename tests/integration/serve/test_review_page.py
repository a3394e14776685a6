"""The review page in a real browser, served as `dia serve` does it, on a socket of this machine.

`DIA_BROWSER` names a Chromium; `DIA_SHOTS=folder` keeps a picture of each step.
"""

import csv
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dia.data import phantoms
from dia.serve.api import build_app
from dia.serve.limits import Limits
from dia.serve.review.store import Reviews
from dia.serve.review.worklist import MOST_LISTS, Worklist, Worklists
from dia.serve.server import make_server

SIDE = 32  # of the model; the phantoms handed in are of other sizes
BAD = "broken.png"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve files of every kind a reader takes, one damaged."""
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    folder = tmp_path_factory.mktemp("incoming")
    sets = [phantoms.load("test", size=side, n=n, seed=5).images[..., 0] for side, n in ((48, 6), (SIDE, 4))]
    grey = [x for images in sets for x in images]
    colour = np.repeat(grey[1][..., None], 3, axis=2)
    colour[..., 2] //= 2  # not grey in disguise
    Image.fromarray(grey[0]).save(folder / "grey.png")
    Image.fromarray(colour).save(folder / "colour.png")
    Image.fromarray(grey[2]).save(folder / "photo.jpg")
    Image.fromarray(grey[3]).save(folder / "scan.tif")
    Image.fromarray(grey[4].astype(np.uint16) * 257).save(folder / "deep.png")
    for i, image in enumerate(grey[5:]):
        Image.fromarray(image).save(folder / f"case {i}.png")
    (folder / BAD).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.copy(get_testdata_file("CT_small.dcm"), folder / "ct.dcm")
    found = sorted(folder.iterdir())
    assert len(found) == 12
    return found


# --- the worklist, without a browser ----------------------------------------------------------------------


@pytest.fixture
def worklist(inferencer, tmp_path):
    return Worklist(inferencer, Reviews(tmp_path / "marks.sqlite"))


def _filled(worklist, files):
    problems = [line for _, found in worklist.add(files) for line in found]
    return worklist, problems


def test_rows_hold_what_the_model_says_and_bad_files_are_told(worklist, inferencer, files):
    worklist, problems = _filled(worklist, files)
    assert [name for name, _ in problems] == [BAD]
    good = [f for f in files if f.name != BAD]
    pictures = inferencer.read(good).pictures
    verdict = inferencer.score(np.stack([p.image for p in pictures]))
    expected = dict(zip([p.name for p in pictures], verdict.scores, strict=True))
    rows = worklist.rows(0.1)
    assert {r.name: r.score for r in rows} == pytest.approx(expected)
    assert (
        [r.score for r in rows]
        == sorted(expected.values(), reverse=True)
        == pytest.approx([r.score for r in rows])
    )
    assert all(r.flagged == (r.p_value <= 0.1) for r in rows)


def test_an_image_is_listed_once_and_is_known_by_its_pixels(worklist, files, tmp_path):
    _filled(worklist, files[:3])
    copy = tmp_path / "another name.png"
    grey = next(f for f in files if f.name == "case 0.png")
    shutil.copy(grey, copy)
    _filled(worklist, [grey])
    before = len(worklist)
    _, problems = _filled(worklist, [copy, grey])
    assert len(worklist) == before
    assert problems == [("another name.png", "has the pixels of case 0.png; listed once")]


def test_images_unlike_those_of_training_are_told_from_a_dozen_on(worklist, tmp_path):
    from dia.serve.review import view

    rng = np.random.default_rng(0)
    others = tmp_path / "others"
    others.mkdir()
    for i in range(30):  # noise, much brighter than the phantoms
        noise = rng.integers(200, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noise).save(others / f"{i}.png")
    paths = sorted(others.iterdir())
    _filled(worklist, paths[:2])
    assert worklist.drift()["alarm"] is None
    assert "cannot be judged from 2 images" in view.drift(worklist.drift())
    _filled(worklist, paths)  # two of them are listed already
    assert worklist.drift()["images"] == 30
    assert worklist.drift()["alarm"]
    assert 'role="alert"' in view.drift(worklist.drift())
    assert "differ as a whole from the normals of training" in view.drift(worklist.drift())
    assert view.drift(None).strip() == ""


def test_a_full_list_says_so_and_keeps_what_it_has(worklist, files, monkeypatch):
    monkeypatch.setattr("dia.serve.review.worklist.MOST_IMAGES", 2)
    good = [f for f in files if f.name != BAD]
    worklist, problems = _filled(worklist, good)
    assert {r.name for r in worklist.rows(0.1)} == {f.name for f in good[:2]}
    assert [name for name, _ in problems] == [f.name for f in good[2:]]
    assert all("the list is full" in line for _, line in problems)


@pytest.mark.parametrize("key", ["name", "score", "p_value", "flagged", "verdict", "note"])
def test_every_column_sorts_both_ways(worklist, files, key):
    _filled(worklist, files)
    first, second, *_ = worklist.rows(0.1)
    worklist.mark(first.sha256, 0.1, verdict="agree", note="b")
    worklist.mark(second.sha256, 0.1, verdict="disagree", note="a")
    value = {
        "verdict": lambda r: r.mark.verdict if r.mark else "",
        "note": lambda r: r.mark.note if r.mark else "",
    }.get(key, lambda r: getattr(r, key))
    up, down = ([value(r) for r in worklist.rows(0.1, key, way)] for way in (False, True))
    assert up == sorted(up)
    assert down == up[::-1]


def test_a_verdict_keeps_the_flag_it_was_about(worklist, files):
    _filled(worklist, files)
    sha = worklist.rows(0.5)[0].sha256
    row = worklist.mark(sha, 0.5, verdict="agree")
    assert row.flagged
    assert row.mark.flagged
    assert row.mark.rate == 0.5
    later = worklist.row(sha, 0.001)  # below what the calibration can tell: nothing is flagged
    assert not later.flagged
    assert later.outdated
    noted = worklist.mark(sha, 0.001, note="still")
    assert noted.mark.flagged
    assert noted.mark.rate == 0.5
    assert noted.mark.verdict == "agree"
    again = worklist.mark(sha, 0.001, verdict="agree")
    assert not again.mark.flagged
    assert not again.outdated
    assert again.mark.note == "still"


def test_a_note_that_did_not_change_is_not_saved_again(worklist, files):
    _filled(worklist, files[:1] + files[2:4])
    sha = worklist.rows(0.1)[0].sha256
    assert worklist.mark(sha, 0.1, note="").mark is None
    assert worklist.reviews.of_model(worklist.model) == []


def test_windows_do_not_share_lists_and_the_oldest_is_forgotten(inferencer, tmp_path, files):
    lists = Worklists(inferencer, Reviews(tmp_path / "marks.sqlite"))
    _filled(lists["a"], files[2:4])
    assert len(lists["a"]) == 2
    assert len(lists["b"]) == 0
    for i in range(MOST_LISTS - 1):
        assert len(lists["a"]) == 2  # touched: not the oldest
        lists[f"other {i}"]
    assert len(lists["a"]) == 2
    for i in range(MOST_LISTS):
        lists[f"more {i}"]
    assert len(lists["a"]) == 0


# --- the page, in a browser -------------------------------------------------------------------------------


@contextmanager
def serving(inferencer, store, token=None):
    """The address of the page and the service, in a thread."""
    from dia.serve.review.page import mount

    app = mount(build_app(inferencer, Limits(), token), inferencer, store=store, token=token)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        running = make_server(app)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    found = os.environ.get("DIA_BROWSER") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium found; name one with DIA_BROWSER")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    api.expect.set_options(timeout=20_000)
    with (
        api.sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] * root)) as browser,
    ):
        yield browser


class Server(NamedTuple):
    url: str
    store: Path
    temporary: Path


@pytest.fixture(scope="module")
def server(inferencer, tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("served")
    temporary, store = folder / "tmp", folder / "marks.sqlite"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        patch.setenv("GRADIO_TEMP_DIR", "")  # which `mount` sets
        with serving(inferencer, store) as url:
            yield Server(url, store, temporary)


class Window:
    """A window of the page, and what it asked for and complained of."""

    def __init__(self, browser, url, width=1360, height=900, **context):
        from playwright.sync_api import expect

        self.expect = expect
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.requests, self.complaints, self.url = [], [], url
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.goto(url)
        self.step = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.shot("end")
            outside = [u for u in self.requests if not u.startswith((self.url, "data:", "blob:"))]
            assert outside == []
            assert self.complaints == []
        self.context.close()

    def at(self, selector, **more):
        return self.page.locator(selector, **more)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def drop(self, files, images):
        self.at("#drop input[type=file]").set_input_files([str(f) for f in files])
        self.expect(self.at("#status")).to_contain_text(re.compile(r"files? read:"))
        self.expect(self.at("#list tbody tr")).to_have_count(images)

    def row(self, name):
        return self.at("#list tbody tr", has=self.page.get_by_role("button", name=name, exact=True))

    def column(self, what):
        return self.at(f"#list td.{what}").all_inner_texts()

    def sort(self, title, way):
        self.at("#list th").get_by_role("button", name=title, exact=True).click()
        self.expect(self.at(f"#list th[aria-sort={way}]")).to_have_text(re.compile(title))

    def opened(self, name):
        """Waits until this image is open, in the list as in the panel, with all its pictures."""
        self.expect(self.at("#title h2")).to_have_text(name)
        self.expect(self.at("#list tr[aria-current]")).to_contain_text(name)
        self.expect(self.at("#picture img.image")).to_have_attribute("alt", f"The image {name}")
        self.expect(self.at("#dissolved img").first).to_have_attribute("alt", re.compile(re.escape(name)))
        self.expect(self.at("#nearest figure")).to_have_count(4)

    def shot(self, what):
        if folder := os.environ.get("DIA_SHOTS"):
            self.step += 1
            width = self.page.viewport_size["width"]
            test = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]
            self.page.screenshot(path=Path(folder) / test / f"{self.step:02d}-{what}-{width}.png")


def _saved(store):
    """What lies in the file: verdict, note and flag by name."""
    with closing(sqlite3.connect(store)) as db:
        rows = db.execute("SELECT name, verdict, note, flagged, rate FROM marks").fetchall()
    return {name: rest for name, *rest in rows}


def _rate_between(rows):
    """A rate in per cent at which some of these rows are flagged and some are not."""
    ps = sorted({r.p_value for r in rows})
    assert len(ps) > 1
    return np.ceil(1000 * ps[0]) / 10


def test_a_review_from_upload_to_export(browser, server, files, worklist, tmp_path):
    expected = {r.name: r for r in _filled(worklist, files)[0].rows(0.1)}
    by_score = [r.name for r in worklist.rows(0.1)]
    with Window(browser, server.url) as w:
        w.expect(w.at("#header")).to_contain_text("For research; not a medical device.")

        # upload: everything readable is listed, highest score first; what is not is told in a line
        w.drop(files, images=11)
        w.expect(w.at("#status .problems li")).to_have_count(1)
        w.expect(w.at("#status .problems li")).to_contain_text(BAD)
        assert w.column("name") == by_score
        assert "ct.dcm" in by_score
        assert [float(s) for s in w.column("score")] == [float(f"{expected[n].score:.3g}") for n in by_score]
        assert [float(p) for p in w.column("p_value")] == [round(expected[n].p_value, 3) for n in by_score]
        w.opened(by_score[0])
        assert not [
            p for p in server.temporary.rglob("*") if p.name in {f.name for f in files}
        ]  # no copy stays
        w.shot("uploaded")

        # the rate flags anew, and says what it means
        rate = _rate_between(expected.values())
        number = w.at("#rate input[type=number]")
        number.fill(f"{rate}")
        flagged = [n for n in by_score if expected[n].p_value <= rate / 100]
        w.expect(w.at("#list .count")).to_contain_text(f"{len(flagged)} flagged")
        assert [n for n in by_score if "yes" in w.row(n).locator(".flagged").inner_text()] == flagged
        w.expect(w.at("#meaning")).to_contain_text("Of 100 new normal images")
        number.fill("0.1")
        w.expect(w.at("#list .count")).to_contain_text("0 flagged")
        w.expect(w.at("#meaning")).to_contain_text("nothing can be flagged below")
        number.fill(f"{rate}")
        w.expect(w.at("#list .count")).to_contain_text(f"{len(flagged)} flagged")
        number.blur()

        # sort, then open: the row that was clicked, not the one that stood there before
        w.sort("Name", "ascending")
        assert w.column("name") == sorted(by_score, key=str.lower)
        w.sort("Name", "descending")
        assert w.column("name") == sorted(by_score, key=str.lower, reverse=True)
        w.at("#list tbody tr").nth(1).click()
        w.opened(sorted(by_score, key=str.lower)[-2])
        w.sort("Score", "descending")
        w.row("ct.dcm").get_by_role("button").press("Enter")  # as from the keyboard
        w.opened("ct.dcm")
        w.shot("opened")

        # heatmap: its opacity and the shortcut change what is seen
        stack = w.at("#picture .stack")
        seen = [stack.screenshot()]
        w.at("#opacity input[type=range]").fill("0")
        w.expect(w.at("#picture .heat")).to_have_css("opacity", "0")
        seen.append(stack.screenshot())
        w.at("#opacity input[type=range]").fill("100")
        w.expect(w.at("#picture .heat")).to_have_css("opacity", "1")
        seen.append(stack.screenshot())
        assert len(set(seen)) == 3
        w.press("o")
        w.expect(w.at("#picture .heat")).to_be_hidden()
        w.expect(w.at("#picture")).to_contain_text("heatmap hidden")
        w.press("o")
        w.expect(w.at("#picture .heat")).to_be_visible()

        # dissolve: slider and shortcuts change the picture and the residual
        pictures = w.at("#dissolved img")
        before = [pictures.nth(i).get_attribute("src") for i in (0, 1)]
        w.at("#dissolve-t input[type=range]").fill("600")
        w.expect(w.at("#dissolved")).to_contain_text("t = 600")
        assert all(pictures.nth(i).get_attribute("src") != before[i] for i in (0, 1))
        w.at("#dissolved").click()  # away from the slider
        w.press("]")
        w.expect(w.at("#dissolved")).to_contain_text("t = 625")
        w.press("[", "[")
        w.expect(w.at("#dissolved")).to_contain_text("t = 575")
        w.shot("dissolved")

        # marks: saved when they are made, by button and by key
        w.at("#agree").click()
        w.expect(w.at("#state")).to_contain_text("Agreed with")
        is_flagged = "ct.dcm" in flagged
        assert _saved(server.store)["ct.dcm"] == ["agree", "", is_flagged, pytest.approx(rate / 100)]
        w.press("n")
        w.expect(w.at("#note textarea")).to_be_focused()
        note = "=1+1 <b>dad</b> ${2+2} {{value}}"  # letters are no shortcuts here, and nothing runs
        w.page.keyboard.type(note[:-6])
        w.page.keyboard.insert_text(note[-6:])  # as pasted or dictated: no key is pressed
        w.expect(w.at("#state")).to_contain_text("Note kept")
        w.press("Escape")
        w.expect(w.row("ct.dcm").locator(".note [title]")).to_have_attribute("title", note)
        assert _saved(server.store)["ct.dcm"][:2] == ["agree", note]

        # next and previous, in the order of the list
        here = by_score.index("ct.dcm")
        other = by_score[here + 1] if here + 1 < len(by_score) else by_score[here - 1]
        w.press(*(("j", "k") if by_score.index(other) > here else ("k", "j"))[:1])
        w.opened(other)
        w.expect(w.at("#note textarea")).to_have_value("")
        w.press("d")
        w.expect(w.at("#state")).to_contain_text("Disagreed with")
        assert _saved(server.store)[other][0] == "disagree"
        w.press("u")
        w.expect(w.at("#state")).to_contain_text("Not marked")
        assert other not in _saved(server.store)
        w.press("d")
        w.expect(w.at("#list .count")).to_contain_text("2 marked")
        w.press(*(("ArrowUp",) if by_score.index(other) > here else ("ArrowDown",)))
        w.opened("ct.dcm")
        w.expect(w.at("#note textarea")).to_have_value(note)
        w.shot("marked")

        # filters
        w.press("f")
        w.expect(w.at("#list tbody tr")).to_have_count(len(flagged))
        assert w.column("name") == flagged
        w.press("f")
        w.expect(w.at("#list tbody tr")).to_have_count(11)
        w.page.get_by_label("Unmarked").check()
        w.expect(w.at("#list tbody tr")).to_have_count(9)
        assert not {"ct.dcm", other} & set(w.column("name"))
        w.page.get_by_label("All", exact=True).check()
        w.expect(w.at("#list tbody tr")).to_have_count(11)

        # help
        w.press("?")
        w.expect(w.page.get_by_role("dialog")).to_be_visible()
        w.shot("help")
        w.press("Escape")
        w.expect(w.page.get_by_role("dialog")).to_be_hidden()

        # export: every image, with what was said of it; then the saved marks alone
        with w.page.expect_download() as download:
            w.at("#export").click()
        download.value.save_as(tmp_path / "list.csv")
        lines = list(csv.DictReader((tmp_path / "list.csv").open(newline="")))
        assert [x["name"] for x in lines] == by_score
        marked = {x["name"]: x for x in lines if x["verdict"]}
        assert {n: x["verdict"] for n, x in marked.items()} == {"ct.dcm": "agree", other: "disagree"}
        assert marked["ct.dcm"]["note"] == f"'{note}"
        assert [x["name"] for x in lines if x["flagged"] == "true"] == flagged
        assert [x["sha256"] for x in lines] == [expected[n].sha256 for n in by_score]
        assert {x["model"] for x in lines} == {worklist.model}
        with w.page.expect_download() as download:
            w.at("#export-all").click()
        download.value.save_as(tmp_path / "marks.csv")
        lines = list(csv.DictReader((tmp_path / "marks.csv").open(newline="")))
        assert {x["name"] for x in lines} == {"ct.dcm", other}
        # only the upload waits in a queue, whose stream of answers may close as something else is asked
        assert sum("/queue/join" in url for url in w.requests) == 1


def test_another_window_has_its_own_list_and_a_known_image_its_mark(browser, server, files):
    one, two = ([f for f in files if f.name == name] for name in ("grey.png", "ct.dcm"))
    with Window(browser, server.url) as a, Window(browser, server.url) as b:
        a.drop(one, images=1)
        a.opened("grey.png")
        b.drop(two, images=1)
        b.opened("ct.dcm")
        a.press("a")
        a.expect(a.at("#state")).to_contain_text("Agreed")
        assert _saved(server.store)["grey.png"][0] == "agree"
        b.press("d")
        b.expect(b.at("#state")).to_contain_text("Disagreed")
        assert a.column("name") == ["grey.png"]
        assert b.column("name") == ["ct.dcm"]
        assert _saved(server.store)["ct.dcm"][0] == "disagree"
        b.drop(one, images=2)  # marked in the other window
        b.expect(b.row("grey.png").locator(".verdict")).to_contain_text("agree")


def test_it_fits_a_phone_in_light_and_dark(browser, server, files):
    few = [f for f in files if f.name in ("grey.png", "case 0.png", BAD)]
    with Window(browser, server.url, 390, 844, color_scheme="light", has_touch=True) as w:
        w.drop(few, images=2)
        assert w.page.evaluate("document.documentElement.scrollWidth") <= 390
        for name in ("case 0.png", "grey.png"):  # one of them is open already
            w.row(name).tap()
            w.opened(name)
            w.expect(w.at("#agree")).to_be_in_viewport()  # a tap leads to the image
        for part in ("#picture .stack", "#dissolved", "#list table", "#note textarea", "#export-all"):
            box = w.at(part).bounding_box()
            assert 0 <= box["x"] <= 390 - box["width"], part
        for scheme in ("light", "dark"):
            w.page.emulate_media(color_scheme=scheme)
            w.page.wait_for_function(
                r"""(dark) => {
                    const sum = (colour) => colour.match(/\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
                    const ground = sum(getComputedStyle(document.body).backgroundColor);
                    const ink = sum(getComputedStyle(document.querySelector('#title h2')).color);
                    return dark ? ink > ground + 300 : ground > ink + 300;
                }""",
                arg=scheme == "dark",
            )


def test_a_token_is_asked_for_and_marks_are_found_by_another_server(browser, server, inferencer, files):
    known = [f for f in files if f.name == "grey.png"]
    earlier = Worklist(inferencer, Reviews(server.store))
    _filled(earlier, known)
    earlier.mark(earlier.rows(0.1)[0].sha256, 0.1, verdict="disagree")
    with serving(inferencer, server.store, "secret-ä") as url, Window(browser, url) as w:
        w.expect(w.page.get_by_label("password")).to_be_visible()
        w.expect(w.at("#list")).to_have_count(0)
        assert w.context.request.post(f"{url}/gradio_api/upload").status == 401
        w.shot("login")
        w.page.get_by_label("username").fill("R. Eader")
        w.page.get_by_label("password").fill("secret-ä")
        w.page.get_by_role("button", name="Login").click()
        w.drop(known, images=1)
        w.opened("grey.png")
        w.expect(w.at("#state")).to_contain_text("Disagreed")
        w.press("a")
        w.expect(w.at("#state")).to_contain_text("by R. Eader")
        assert _saved(server.store)["grey.png"][0] == "agree"
