"""The page that trains in a real browser: from dropped normals to a served model; stops, failures, restarts.

`DIA_BROWSER` names a Chromium; `DIA_SHOTS=folder` keeps a picture of each step.
"""

import io
import re

import pytest
from browsing import Window, chromium, serving_room
from PIL import Image
from quick_drop import QUICK, until

from dia.core.storage import owned
from dia.data import phantoms
from dia.serve.room.train.child import Child

EVIL = "<img src=x onerror=alert(1)>.png"
SLOW = 240_000  # milliseconds that a real training may take on a busy machine


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    """A folder of two wards with normals, one with tumours, and a damaged file."""
    folder = tmp_path_factory.mktemp("incoming") / "scans"
    grey = phantoms.load("train", size=48, n=30, seed=4).images[..., 0]
    for i, image in enumerate(grey):
        ward = folder / ("ward A" if i < 14 else "ward B" if i < 26 else "tumours")
        ward.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(ward / f"scan {i}.png")
    (folder / "ward A" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The file that holds quick trainings up while it is there."""
    file = tmp_path / "gate"
    monkeypatch.setenv("QUICK_GATE", str(file))
    monkeypatch.setattr(Child, "command", QUICK)
    return file


@pytest.fixture
def url(tmp_path):
    with serving_room(None, None, tmp_path / "room") as made:
        yield f"{made}/train"


def png(seed=0):
    stream = io.BytesIO()
    Image.fromarray(phantoms.load("train", size=24, n=1, seed=seed).images[0, ..., 0]).save(stream, "PNG")
    return stream.getvalue()


class TrainingWindow(Window):
    """A window of the page that trains."""

    def __init__(self, browser, url, *args, **more):
        super().__init__(browser, url, *args, **more)
        self.url = self.url.removesuffix("/train")

    def bring(self, *names):
        """Chooses files by name, and waits until they are checked."""
        files = [{"name": n, "mimeType": "image/png", "buffer": png(i)} for i, n in enumerate(names)]
        self.at("#files").set_input_files(files)
        self.expect(self.at("#headline")).to_be_visible()

    def start(self, name):
        self.at("#name").fill(name)
        self.press("Enter")
        self.expect(self.run(name)).to_be_visible()

    def run(self, name):
        return self.at(f'#runs li[data-run="{name}"]')

    def state(self, name, words):
        self.expect(self.run(name).locator(".mark")).to_have_text(words)


def test_from_dropped_normals_to_a_served_model(browser, normals, tmp_path):
    with (
        serving_room(None, None, tmp_path / "room") as url,
        TrainingWindow(browser, f"{url}/train") as page,
    ):
        page.page.goto(url)  # without a model it leads here
        page.expect(page.page).to_have_url(f"{url}/train")
        page.sees("#normals", "No model is served yet")
        page.sees("#runs", "No trainings yet")
        page.shot("empty")
        page.at("#folder").set_input_files(str(normals))
        page.expect(page.at("#headline")).to_have_text("26 normal images can be trained on", timeout=SLOW)
        page.sees(".findings", "1 file could not be read")
        page.at(".findings li", has_text="could not be read").locator("summary").click()
        page.sees(".findings", "broken.png – no image, or damaged")
        page.expect(page.at(".thumbs img").first).to_have_js_property("naturalWidth", 48)
        assert page.at("input[name=folders]:checked").count() == 2
        page.sees(".folders", "tumours 4 files: by its name, anomalies")
        page.sees("#kept", "kept on the server")
        page.shot("checked")
        page.start("wards")
        page.sees("#job-title", "Training wards")
        page.shot("training")
        page.expect(page.at("#job-serve-wards")).to_be_visible(timeout=SLOW)
        page.state("wards", "trained")
        page.sees('#runs li[data-run="wards"]', "threshold")
        page.shot("trained")
        page.at("#report-wards").click()
        page.sees("#report", "Scores of normal images")
        page.shot("report")
        page.press("Escape")
        page.at("#job-serve-wards").click()
        page.expect(page.page).to_have_url(f"{url}/", timeout=SLOW)
        page.sees("#model", "fitted on 26 normals")
        page.page.goto(f"{url}/train")
        page.state("wards", "in use")
        assert page.run("wards").get_by_text("Delete", exact=True).count() == 0


def test_a_training_is_stopped_and_goes_on_also_after_the_service_began_anew(browser, gate, tmp_path):
    folder = tmp_path / "room"
    with serving_room(None, None, folder) as url, TrainingWindow(browser, f"{url}/train") as page:
        page.bring("a.png", "b.png")
        gate.touch()
        page.start("first")
        page.state("first", "running")
        until(lambda: owned(folder / "runs" / "first"))
        page.at("#stop").click()
        page.state("first", "stopped")
        page.sees("#job", "can go on from where it was")
        page.shot("stopped")
    with serving_room(None, None, folder) as url, TrainingWindow(browser, f"{url}/train") as page:
        page.state("first", "stopped")
        page.at("#resume-first").click()
        page.sees("#job-title", "Training first")
        gate.unlink()
        page.state("first", "trained")
        page.at("#report-first").click()
        page.expect(page.at("#report .curve")).to_have_count(1)
        page.expect(page.at("#report .chart").last).to_have_attribute(
            "aria-label", re.compile("Loss of the enc")
        )
        page.at("#report-close").click()


def test_a_failure_says_why_and_what_helps(browser, gate, url, monkeypatch):
    monkeypatch.setenv("QUICK_FAILS", "1")
    with TrainingWindow(browser, url) as page:
        page.bring("a.png", "b.png")
        page.start("first")
        page.state("first", "failed")
        page.sees("#job", "lower the learning rate")
        page.sees('#runs li[data-run="first"]', "lower the learning rate")
        page.shot("failed")
        monkeypatch.delenv("QUICK_FAILS")
        page.at("#resume-first").click()
        page.state("first", "trained")


def test_names_with_markup_are_text(browser, gate, url):
    with TrainingWindow(browser, url) as page:
        page.bring(EVIL, "b.png")
        page.at(".findings summary").click()
        page.expect(page.at(".findings ul li")).to_have_text(f"{EVIL} – b.png")
        assert page.at(".findings img").count() == 0


def test_names_that_are_paths_or_taken_are_refused_before_anything_is_sent(browser, gate, url):
    with TrainingWindow(browser, url) as page:
        page.bring("a.png", "b.png")
        for name in ("../x", "a b", ""):
            page.at("#name").fill(name)
            page.at("#start").click()
            assert page.at("#name").evaluate("(e) => !e.validity.valid")
        page.start("first")
        page.state("first", "trained")
        page.bring("a.png", "b.png")
        page.at("#name").fill("first")
        page.at("#start").click()
        assert "another" in page.at("#name").evaluate("(e) => e.validationMessage")
        assert not [u for u in page.requests if u.endswith("/start")][1:]


def test_two_windows_start_at_once_and_one_is_told_so(browser, gate, url, tmp_path):
    with TrainingWindow(browser, url) as one, TrainingWindow(browser, url) as other:
        one.allowed = other.allowed = ("409",)
        for page in (one, other):
            page.bring("a.png", "b.png")
        gate.touch()
        for page, name in ((one, "first"), (other, "second")):  # the other has not looked since
            page.at("#name").fill(name)
            page.at("#start").evaluate("(e) => e.click()")
        one.state("first", "running")
        other.sees("#trouble", "under way")
        other.state("first", "running")
        gate.unlink()
        one.state("first", "trained")


def test_files_are_dropped_anywhere_and_hidden_ones_stay_out(browser, gate, url):
    with TrainingWindow(browser, url) as page:
        page.expect(page.at("#choose-folder")).to_be_visible()
        moved = page.page.evaluate_handle(
            """(bytes) => {
              const moved = new DataTransfer();
              const file = (name) => new File([new Uint8Array(bytes)], name);
              for (const name of ["a.png", "b.png", ".DS_Store"]) moved.items.add(file(name));
              return moved;
            }""",
            [*png()],
        )
        page.page.dispatch_event("h1", "dragenter", {"dataTransfer": moved})
        page.expect(page.at("#dropping")).to_be_visible()
        page.page.dispatch_event("h1", "drop", {"dataTransfer": moved})
        page.expect(page.at("#dropping")).to_be_hidden()
        page.expect(page.at("#headline")).to_have_text("2 normal images can be trained on")


def test_by_keyboard_alone_a_set_is_chosen_and_a_run_deleted(browser, gate, url):
    with TrainingWindow(browser, url) as page:
        page.bring("a.png", "b.png")
        page.start("first")
        page.state("first", "trained")
        page.at("#delete-first").focus()
        page.press("Enter")
        page.sees("#sure", "Delete first?")
        page.press("Escape")
        page.state("first", "trained")
        page.at("#delete-first").focus()
        page.press("Enter", "Tab", "Enter")
        page.sees("#runs", "No trainings yet")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (820, 1180), (1440, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_fits_the_screen_and_each_control_has_a_name(browser, gate, url, width, height, scheme):
    with TrainingWindow(browser, url, width, height, color_scheme=scheme) as page:
        fits = "() => document.documentElement.scrollWidth <= innerWidth"
        nameless = """() => [...document.querySelectorAll("button, input:not([hidden]), select")]
          .filter((e) => !e.textContent.trim() && !e.labels?.length && !e.getAttribute("aria-label"))
          .map((e) => e.outerHTML)"""
        page.expect(page.at("#choose-folder")).to_be_visible()
        assert page.page.evaluate(fits)
        page.bring("a" * 120 + ".png", "b.png", "c.png")
        page.at(".findings summary").click()
        assert page.page.evaluate(fits)
        assert page.page.evaluate(nameless) == []
        page.shot("checked")
        page.start("x" * 60)
        page.state("x" * 60, "trained")
        assert page.page.evaluate(fits)
        page.at(f"#report-{'x' * 60}").click()
        page.expect(page.at("#report-close")).to_be_visible()
        page.shot("report")
        assert page.page.evaluate(fits)


def test_without_an_answer_the_page_says_so(browser, gate, tmp_path):
    with serving_room(None, None, tmp_path / "room") as url:
        page = TrainingWindow(browser, f"{url}/train")
        page.allowed = ("ERR_",)
        page.expect(page.at("#choose-folder")).to_be_visible()
    with page:
        page.at("#choose-set").click()
        page.sees("#trouble", "The service does not answer")
        page.shot("unanswered")
