"""The reading page in a real browser: each step of a reading, by mouse, by keyboard alone, on three screens.

`DIA_BROWSER` names a Chromium; `DIA_SHOTS=folder` keeps a picture of each step.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browsing import ReadingWindow, chromium, serving_room
from PIL import Image

from dia.data import phantoms

STATIC = Path(__file__).parents[3] / "src/dia/serve/room/static"
TOKENS = Path(__file__).parents[3] / "src/dia/report/templates/tokens.css"
BESIDE = "#tiles figure:nth-child(2) > canvas"
BAD, EVIL, VOLUME = "broken.png", "<img src=x onerror=alert(1)>.png", "chest"
SLICES, MISSING, LESION, LAST = 12, (4, 5), 9, 13  # numbers are those of the file
LABEL = f"slice #{LESION} (8 of {SLICES})"


@pytest.fixture(scope="module")
def incoming(tmp_path_factory):
    """Ten pictures and a damaged file."""
    folder = tmp_path_factory.mktemp("incoming")
    grey = phantoms.load("test", size=32, n=14, seed=5).images[..., 0]
    for i, image in enumerate(grey[:8]):
        Image.fromarray(image).save(folder / f"case {i}.png")
    Image.fromarray(grey[8]).save(folder / EVIL)
    Image.fromarray(np.stack([grey[9], grey[9] // 2, grey[9]], -1)).save(folder / "colour.png")
    (folder / BAD).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A DICOM series in Hounsfield units, two of whose slices are missing."""
    pytest.importorskip("pydicom")
    from medical_files import dicom_file
    from pydicom.uid import generate_uid

    folder = tmp_path_factory.mktemp("scanner") / VOLUME
    plane = phantoms.load("test", size=48, n=2, seed=7).images[0, ..., 0].astype(np.int16) * 6 - 1000
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(LAST + 1):
        if k in MISSING:
            continue
        pixels = plane.copy()
        if k == LESION:
            pixels[12:30, 12:30] = 1500
        dicom_file(
            folder / f"{k:03d}.dcm", pixels, Modality="CT", SeriesInstanceUID=series, StudyInstanceUID=study,
            FrameOfReferenceUID=frame, InstanceNumber=k + 1, ImagePositionPatient=[0, 0, 2.5 * k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.8, 0.8], WindowCenter=0,
            WindowWidth=1800, RescaleSlope=1, RescaleIntercept=0,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def url(inferencer, served_run, tmp_path_factory, browser):
    with serving_room(inferencer, served_run.run, tmp_path_factory.mktemp("room")) as found:
        yield found


def of(incoming, *names):
    return [f for f in incoming if f.name in names]


def in_words(value):
    """A score as the list shows it."""
    return float(f"{value:.3g}")


def test_a_reading_from_drop_to_export(browser, url, incoming, chest, inferencer, tmp_path):
    pictures = [f for f in incoming if f.name != BAD]
    read = inferencer.read(pictures)
    verdict = inferencer.score(read.images(inferencer.shape))
    score = dict(zip([p.name for p in read.pictures], verdict.scores, strict=True))
    with ReadingWindow(browser, url) as w:
        w.expect(w.at("#welcome")).to_be_visible()
        w.sees(".limits-line", "Not a medical device")
        w.shot("empty")

        # dropped, read, scored, listed; the damaged one told
        w.drop(incoming, cases=10)
        w.drop(chest, cases=11)
        w.sees("#problems", "1 file left out")
        w.sees("#problems-list", BAD)
        shown = dict(zip(w.names(), map(float, w.column("score")), strict=True))
        assert {n: shown[n] for n in score} == {n: in_words(v) for n, v in score.items()}
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
        w.open(w.names()[0])
        w.shot("scored")

        # the rate flags anew, with the threshold in the histogram
        def flagged():
            return [n for n, f in zip(w.names(), w.column("flag"), strict=True) if f]

        w.at("#rate").focus()
        found = []
        for key in ("Home", "End"):
            with w.page.expect_response(re.compile("/room/threshold")):
                w.press(key)
            w.frame()
            found.append(flagged())
        few, many = found
        w.sees("#rate-value", "50 %")
        w.expect(w.at("#rate-words")).to_contain_text("50")
        assert set(few) < set(many)
        assert w.at("#histogram .cut").count() == 1
        w.expect(w.at("#histogram")).to_have_attribute("aria-label", re.compile("11 of this list"))

        # sort, filter, search
        w.at("[data-sort=name]").click()
        by_name = [n for n in w.names() if n.startswith("case")]
        assert by_name == sorted(by_name, key=lambda n: int(n.split()[1][:-4]))
        w.at("#filter").select_option("flagged")
        assert set(w.names()) == set(many)
        w.at("#filter").select_option("all")
        w.at("#search").fill("CHEST")
        assert w.names() == [VOLUME]
        w.at("#search").fill("nothing like it")
        w.expect(w.at("#none")).to_be_visible()
        w.at("#search").fill("")
        w.at("[data-sort=score]").click()

        # the volume: slices by wheel, strip and keys; real values, mm, presets
        w.open(VOLUME)
        w.shown(LESION)
        w.sees(".corner.name", LABEL)
        w.sees("#facts", "0.8 × 0.8 × 2.5")
        w.expect(w.at("#strip")).to_have_attribute("aria-valuetext", re.compile(re.escape(LABEL)))
        w.page.mouse.move(*w.middle())
        w.page.mouse.wheel(0, 60)
        w.shown(LESION + 1)
        w.page.mouse.wheel(0, -60)
        w.shown(LESION)
        box = w.at("#strip").bounding_box()
        w.page.mouse.click(box["x"] + box["width"] * 2.5 / SLICES, box["y"] + 10)
        w.shown(2)
        w.press("r")
        w.shown(LESION)
        options = w.at("#preset option").all_inner_texts()
        assert {"Lung", "Bone", "Brain", "Auto", "Full range"} <= set(options)
        looks = [w.drawn()]
        for preset in ("lung", "bone", "full"):
            w.at("#preset").select_option(preset)
            looks.append(w.drawn())
        w.press("w")
        w.drag(w.middle(), w.middle(0.1, 0.05))
        w.expect(w.at("#preset")).to_have_value("own")
        looks.append(w.drawn())
        w.press("v")
        before = w.at("#width").input_value()
        w.drag(w.middle(), w.middle(-0.1, 0.05), button="right")
        assert w.at("#width").input_value() != before
        looks.append(w.drawn())
        assert len(set(looks)) == len(looks)
        w.page.mouse.move(*w.middle())
        w.sees(".corner.value", re.compile(r"x \d+ +y \d+ +-?\d+"))
        w.shot("volume")

        # zoom at the cursor, pan, fit, 1:1; the neighbour beside has the same place
        w.page.keyboard.down("Control")
        w.page.mouse.wheel(0, -200)
        w.page.keyboard.up("Control")
        zoomed = w.drawn()
        assert zoomed not in looks
        w.drag(w.middle(), w.middle(0.1, 0.1))
        assert w.drawn() != zoomed
        w.press("0")
        fitted = w.at(".corner.window").inner_text()
        w.press("1")
        w.sees(".corner.window", "100 %")
        w.press("0")
        w.sees(".corner.window", fitted)
        w.expect(w.at("#thumbs button")).to_have_count(4)
        w.sees("#tiles figure >> nth=1", "Normal 1, distance")
        beside = w.drawn(BESIDE)
        w.press("=")
        assert w.drawn(BESIDE) != beside
        w.press("0")
        w.at("#thumbs button >> nth=2").click()
        w.sees("#tiles figure >> nth=1", "Normal 3, distance")

        # heat and contours
        top = next(n for n in w.names() if n in score)
        w.open(top)
        heat = w.drawn()
        w.press("o")
        plain = w.drawn()
        w.press("o")
        assert w.drawn() == heat != plain
        w.at("#opacity").fill("100")
        assert w.drawn() != heat
        w.expect(w.at("#findings-count")).to_have_text(re.compile(r"\d+"))
        if w.at("#findings button").count():
            outlined = w.drawn()
            w.press("c")
            assert w.drawn() != outlined
            w.press("c")
            w.at("#findings button").first.click()
            w.expect(w.at("#findings button").first).to_have_attribute("aria-current", "")
            assert w.drawn() != outlined
        w.press("0")
        w.shot("findings")

        # dissolved, and the difference
        w.press("x")
        w.expect(w.at("#tiles figure")).to_have_count(3)
        w.expect(w.at("#tiles figure:nth-child(2) p")).to_have_text("")
        w.sees("#tiles figure >> nth=1", "t = 200")
        first = w.drawn(BESIDE)
        w.press("]", "]")
        w.sees("#t-value", "t = 250")
        w.expect(w.at("#tiles figure:nth-child(2) p")).to_have_text("")
        assert w.drawn(BESIDE) != first
        w.shot("dissolved")
        w.press("g")

        # a box, a verdict, a note: saved as they are made
        w.press("b")
        w.drag(w.middle(-0.1, -0.1), w.middle(0.1, 0.05))
        w.expect(w.at("#boxes li")).to_have_count(1)
        w.saved()
        w.press("v")
        w.at("[data-verdict=agree]").click()
        w.expect(w.at("[data-verdict=agree]")).to_have_attribute("aria-pressed", "true")
        w.saved()
        w.expect(w.row(top).locator(".verdict")).to_contain_text("agreed")
        w.at("#note").fill("=1+1 <b>here</b>")
        w.at("#note").blur()
        w.expect(w.row(top).locator(".note")).to_contain_text("=1+1 <b>here</b>")
        w.saved()
        w.shot("marked")

        # undone step by step: the note, the verdict
        w.at("#undo").click()
        w.expect(w.at("#note")).to_have_value("")
        w.at("#undo").click()
        w.expect(w.at("[data-verdict=agree]")).to_have_attribute("aria-pressed", "false")
        w.expect(w.at("#boxes li")).to_have_count(1)
        w.press("d")
        w.expect(w.row(top).locator(".verdict")).to_contain_text("disagreed")
        w.saved()

        # found again after a reload
        w.page.reload()
        w.opened(top)
        w.expect(w.at("[data-verdict=disagree]")).to_have_attribute("aria-pressed", "true")
        w.expect(w.at("#boxes li")).to_have_count(1)

        # exports of this list
        found = {}
        for kind, words in (("csv", "This list as CSV"), ("json", "This list as COCO")):
            w.at("#more summary").click()
            with w.page.expect_download() as download:
                w.page.get_by_text(words).click()
            found[kind] = tmp_path / f"list.{kind}"
            download.value.save_as(found[kind])
        with found["csv"].open(newline="") as lines:
            rows = {row["name"]: row for row in csv.DictReader(lines)}
        assert rows[top]["verdict"] == "disagree"
        coco = json.loads(found["json"].read_text())
        assert [len(a["bbox"]) for a in coco["annotations"]] == [4]

        # the teaching panel counts it
        w.at("#tab-teach").click()
        w.sees("#teach-counts", "marks that teach")
        w.shot("teach")

        # forgotten, and not before a question
        w.at("#more summary").click()
        w.at("#forget").click()
        w.page.get_by_role("button", name="Keep them").click()
        w.expect(w.at("#rows")).to_be_visible()
        w.at("#more summary").click()
        w.at("#forget").click()
        w.page.get_by_role("button", name="Forget all", exact=True).click()
        w.expect(w.at("#welcome")).to_be_visible()


def test_verdicts_teach_the_model_and_are_taken_back(browser, served_run, tmp_path):
    from dia.deploy.predictor import Inferencer

    run = tmp_path / "run"
    shutil.copytree(served_run.run, run)  # the update is written there
    found = phantoms.load("test", size=32, n=24, seed=11)
    truth, folder = {}, tmp_path / "batch"
    folder.mkdir()
    for i, (image, label) in enumerate(zip(found.images[..., 0], found.labels, strict=True)):
        truth[f"{i:02d}.png"] = bool(label)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    model = Inferencer(run, device="cpu", normals=str(served_run.data))
    with serving_room(model, run, tmp_path / "room") as url, ReadingWindow(browser, url, height=2400) as w:
        rows = w.at("#body tr[data-id]")  # all in sight, so that no row depends on where the list is scrolled
        w.drop(sorted(folder.iterdir()), cases=24)
        w.at("#filter").select_option("next")
        w.expect(w.at("#body tr[data-id]").first).to_be_visible()
        w.at("#filter").select_option("all")
        w.at("#tab-teach").click()
        w.sees("#teach-counts", "marks that teach")
        w.expect(rows).to_have_count(24)
        names = w.names()
        chosen = names[:8] + [n for n in names[8:] if truth[n]][:4]
        for i, name in enumerate(chosen):
            w.open(name)
            flagged = bool(w.row(name).locator(".flag").inner_text().strip())
            w.press("a" if flagged == truth[name] else "d")
            w.expect(w.at("#teach-counts dd").first).to_have_text(str(i + 1))
        w.shot("marked")
        before = dict(zip(w.names(), w.column("score"), strict=True))
        w.at("#teach-now").click()
        w.expect(w.at("#teach-last")).to_be_visible()
        w.expect(w.at("#teach-state")).to_have_text("")
        w.shot("taught")
        if w.at("#taught").is_visible():  # kept: all is scored anew, until it is taken back
            w.sees("#model", f"taught with {len(chosen)} marks")
            w.expect(w.at("#progress")).to_be_hidden()
            w.at("#teach-undo").click()
            w.expect(w.at("#taught")).to_be_hidden()
            w.sees("#teach-last", "as it was fitted")
            w.expect(w.at("#model")).not_to_contain_text("taught")
        w.expect(w.at("#progress")).to_be_hidden()
        w.page.reload()
        w.expect(rows).to_have_count(24)
        w.expect(w.at("#progress")).to_be_hidden()
        assert dict(zip(w.names(), w.column("score"), strict=True)) == before
        assert len([v for v in w.column("verdict") if v]) == len(chosen)


def test_by_keyboard_alone(browser, url, incoming, chest):
    with ReadingWindow(browser, url) as w:
        w.drop(of(incoming, "case 0.png", "case 1.png"), cases=2)
        w.drop(chest, cases=3)
        names = w.names()
        w.open(names[0])
        w.press("?")
        w.expect(w.page.get_by_role("dialog")).to_be_visible()
        w.shot("keys")
        w.press("Escape")
        w.expect(w.page.get_by_role("dialog")).to_be_hidden()
        w.press("j")
        w.opened(names[1])
        w.press("j", "k")
        w.opened(names[1])
        w.press("s")
        w.expect(w.at("[data-verdict=unsure]")).to_have_attribute("aria-pressed", "true")
        w.press("u")
        w.expect(w.at("[data-verdict=unsure]")).to_have_attribute("aria-pressed", "false")
        w.press("b", "Enter")  # a box in the middle; arrows move it, with Shift they size it
        w.expect(w.at("#boxes li")).to_have_count(1)
        size = w.at("#boxes li").inner_text()
        w.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight")
        assert w.at("#boxes li").inner_text() != size
        w.press("Delete")
        w.expect(w.at("#boxes li")).to_have_count(0)
        w.press("n")
        w.expect(w.at("#note")).to_be_focused()
        w.page.keyboard.type("jkadsu")  # letters, no keys
        w.press("Escape")
        w.saved()
        w.expect(w.at("#note")).to_have_value("jkadsu")
        w.opened(names[1])
        w.press("/")
        w.page.keyboard.type("chest")
        w.press("Tab", "Tab")  # past the filter, to the list's first button
        for _ in range(12):
            if w.page.evaluate("() => document.activeElement.dataset.id !== undefined"):
                break
            w.press("Tab")
        w.press("Enter")
        w.opened(VOLUME)
        w.press("r")
        w.shown(LESION)
        w.at("#strip").focus()
        w.press("ArrowLeft")
        w.shown(LESION - 1)
        w.press("End")
        w.shown(LAST)
        w.press("Home")
        w.shown(0)
        w.press("PageDown")
        w.shown(10 + len(MISSING))


def test_what_is_dropped_anywhere_on_the_page_is_read(browser, url, incoming):
    data = list(of(incoming, "case 7.png")[0].read_bytes())
    with ReadingWindow(browser, url) as w:
        w.sees("#welcome", "Drop images")
        w.expect(w.at("#welcome")).to_be_visible()
        dragged = w.page.evaluate_handle(
            """(bytes) => { const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], "dragged.png")); return held; }""",
            data,
        )
        w.at("#stage").dispatch_event("dragenter", {"dataTransfer": dragged})
        w.expect(w.at("#curtain")).to_be_visible()
        w.at("#stage").dispatch_event("drop", {"dataTransfer": dragged})
        w.expect(w.at("#curtain")).to_be_hidden()
        w.opened("dragged.png")


def test_an_answer_that_was_on_its_way_hides_no_new_images(browser, url, incoming):
    """The list is asked for, files arrive, and only then does the older answer, of an empty list, come."""
    with ReadingWindow(browser, url) as w:
        w.expect(w.at("#welcome")).to_be_visible()
        late = []

        def hold(route):
            if late:
                route.continue_()
            else:
                late.append((route, route.fetch()))

        w.page.route("**/room/list", hold)
        w.page.evaluate("""() => { const said = document.querySelector("#said"); window.told = [];
            new MutationObserver(() => told.push(said.textContent)).observe(said, { childList: true }); }""")
        w.page.evaluate("document.dispatchEvent(new CustomEvent('reader'))")  # asks for the whole list
        w.until(lambda: late)
        with w.page.expect_response("**/read"):
            w.at("#files").set_input_files(of(incoming, "case 5.png"))
        w.frame()
        route, answer = late[0]
        route.fulfill(response=answer)
        w.expect(w.row("case 5.png")).to_be_visible()
        assert not [words for words in w.page.evaluate("told") if words.startswith("0 images")]


def test_files_chosen_before_the_page_is_ready_are_read(browser, url, incoming):
    with ReadingWindow(browser, url) as w:
        w.expect(w.at("#welcome")).to_be_visible()
        modules = []
        w.page.route("**/room.js", lambda route: modules.append(route))
        w.page.reload(wait_until="commit")
        w.at("#files").set_input_files(of(incoming, "case 6.png"))
        w.until(lambda: modules)
        modules[0].continue_()
        w.expect(w.row("case 6.png")).to_be_visible()


def test_a_name_that_is_typed_before_the_page_is_ready_is_kept(browser, url):
    with ReadingWindow(browser, url) as w:
        w.expect(w.at("#welcome")).to_be_visible()
        modules = []
        w.page.route("**/base.js", lambda route: modules.append(route))
        w.page.reload(wait_until="commit")
        w.at("input#reader").fill("Dr. Early")
        w.at("input#reader").blur()
        w.until(lambda: modules)
        with w.page.expect_response("**/room/reader"):
            modules[0].continue_()
        w.page.unroute("**/base.js")
        w.page.reload()
        w.expect(w.at("input#reader")).to_have_value("Dr. Early")


def test_files_that_a_lost_connection_kept_back_are_named(browser, url, incoming):
    with ReadingWindow(browser, url) as w:
        w.allowed = ("ERR_FAILED",)
        w.expect(w.at("#welcome")).to_be_visible()
        w.page.route("**/files", lambda route: route.abort())
        w.at("#files").set_input_files(of(incoming, "case 4.png", "case 5.png"))
        w.expect(w.at("#problems-words")).to_have_text("2 files left out")
        w.at("#problems summary").click()
        w.sees("#problems-list", "case 4.png not sent: The service does not answer. Add it again.")
        w.page.unroute("**/files")
        w.drop(of(incoming, "case 4.png"), cases=1)
        w.expect(w.at("#problems")).to_be_hidden()


def test_names_and_notes_stay_text(browser, url, incoming):
    with ReadingWindow(browser, url) as w:
        w.drop(of(incoming, EVIL), cases=1)
        w.opened(EVIL)
        w.at("#note").fill("<script>alert(1)</script><img src=x onerror=alert(1)>")
        w.at("#note").blur()
        w.saved()
        assert w.at("main img[src=x], main script, b img").count() == 0
        assert w.names() == [EVIL]


def test_marks_outlive_a_lost_connection_and_leaving(browser, url, incoming):
    with ReadingWindow(browser, url) as w:
        w.allowed = ("ERR_FAILED", "ERR_CONNECTION")
        w.drop(of(incoming, "case 2.png"), cases=1)
        w.opened("case 2.png")
        w.page.route("**/room/**", lambda route: route.abort())
        w.press("a")
        w.sees("#trouble", "Connection lost. Your marks are kept")
        w.sees("#saving", "Not saved yet")
        w.shot("away")
        w.page.unroute("**/room/**")
        w.at("#trouble-retry").dispatch_event("click")  # it may have tried by itself, and be hidden
        w.saved()
        w.expect(w.at("#trouble")).to_be_hidden()
        w.at("#note").fill("written in a hurry")  # and left before it was sent
        w.page.goto("about:blank")
        w.page.goto(url)
        w.open("case 2.png")
        w.expect(w.at("#note")).to_have_value("written in a hurry")
        w.expect(w.at("[data-verdict=agree]")).to_have_attribute("aria-pressed", "true")


def test_another_readers_mark_is_shown_beside_mine(browser, url, incoming):
    one = of(incoming, "case 3.png")
    with ReadingWindow(browser, url) as a, ReadingWindow(browser, url) as b:
        for w, name in ((a, "A. One"), (b, "B. Two")):
            w.at("#reader").fill(name)
            w.at("#reader").press("Enter")
        a.drop(one, cases=1)
        a.opened("case 3.png")
        a.press("a")
        a.at("#note").fill("to <b>see</b>")
        a.at("#note").blur()
        a.saved()
        b.drop(one, cases=1)
        b.opened("case 3.png")
        b.sees("#others-list", "A. One")
        b.sees("#others-list", "to <b>see</b>")
        b.expect(b.at("#note")).to_have_value("")
        b.press("d")
        b.saved()
        a.page.reload()
        a.opened("case 3.png")
        a.sees("#others-list", "B. Two")
        a.expect(a.at("[data-verdict=agree]")).to_have_attribute("aria-pressed", "true")


def test_a_session_that_has_ended_leads_to_another(browser, url, incoming):
    with ReadingWindow(browser, url) as w:
        w.allowed = ("401",)
        w.drop(of(incoming, "case 4.png"), cases=1)
        w.opened("case 4.png")
        w.context.clear_cookies()
        w.press("a")
        w.sees("#trouble", "session has ended")
        w.expect(w.at("#trouble-login")).to_be_visible()


@pytest.mark.parametrize(("width", "height", "tabs"), [(1440, 900, 2), (1024, 768, 3), (390, 844, 4)])
def test_it_fits_every_screen_in_light_and_dark(browser, url, incoming, chest, width, height, tabs):
    with ReadingWindow(browser, url, width, height, has_touch=True, color_scheme="light") as w:
        w.drop(of(incoming, "case 5.png"), cases=1)
        w.at("#tab-list").click() if width < 1200 else None
        w.drop(chest, cases=2)
        w.row(VOLUME).tap()
        w.shown(LESION)
        for scheme in ("dark", "light"):
            w.page.emulate_media(color_scheme=scheme)
            for tab in ("list", "view", "case", "teach"):
                button = w.at(f"#tab-{tab}")
                if not button.is_visible():
                    continue
                button.tap()
                assert w.page.evaluate("() => document.documentElement.scrollWidth") <= width
                w.shot(f"{tab}-{scheme}")
            assert w.at("#tabs [role=tab] >> visible=true").count() == tabs
            ground = w.at("#stage").evaluate("(s) => getComputedStyle(s).backgroundColor")
            assert ground == "rgb(0, 0, 0)"  # images are seen on black in both


def test_every_control_has_a_name_and_roles_are_whole(browser, url, incoming, chest):
    with ReadingWindow(browser, url) as w:
        w.drop(of(incoming, "case 6.png"), cases=1)
        w.drop(chest, cases=2)
        w.open(VOLUME)
        label = f"{VOLUME}, {LABEL}"
        for beside in ("dissolved", "", "normals"):  # the image keeps its name whatever is shown beside it
            w.at(f"#beside [data-beside='{beside}']").click()
            w.frame()
            w.expect(w.at("#tiles canvas >> nth=0")).to_have_attribute("aria-label", label)
        nameless = w.page.evaluate("""() => [...document.querySelectorAll(
            "button, a[href], input, select, textarea, summary, [role=slider], [role=img], dialog")]
            .filter((e) => e.offsetParent !== null).filter((e) => !(e.ariaLabel || e.textContent.trim()
                || e.title || e.getAttribute("aria-labelledby") || e.labels?.length))
            .map((e) => e.outerHTML)""")
        assert nameless == []
        loose = w.page.evaluate("""() => [...document.querySelectorAll("[role=radio]")]
            .filter((e) => !e.closest("[role=radiogroup]") || !e.hasAttribute("aria-checked"))
            .map((e) => e.outerHTML)""")
        assert loose == []
        for group in w.at("[role=radiogroup]:visible").all():
            assert group.locator("[tabindex='0']").count() == 1  # one stop of the Tab key
        assert w.at("#body tr[tabindex='0']").count() == 1
        ids = w.page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))


def test_two_thousand_cases_are_a_few_rows(browser, url):
    case = {
        "images": 1, "shape": [8, 8], "worst": 0, "mark": None, "others": 0, "next": None, "p_value": 0.5,
    }  # fmt: skip
    cases = [{**case, "id": f"c{i}", "name": f"scan {i}.png", "score": i / 1000} for i in range(2000)]
    done = {"files": 2000, "read": 2000, "images": 2000, "scored": 2000, "done": True, "problems": []}
    answer = {"version": 1, "progress": done, "drift": None, "cases": cases}
    pixel = (STATIC / "icon.svg").read_bytes()
    with ReadingWindow(browser, url, 1440, 900) as w:
        w.page.route("**/room/list*", lambda route: route.fulfill(json=answer))
        w.page.route("**/thumb", lambda route: route.fulfill(body=pixel, content_type="image/svg+xml"))
        w.page.route(re.compile(r"/room/cases/c\d+$"), lambda route: route.fulfill(json={}, status=404))
        w.allowed = ("404",)
        w.page.reload()
        w.expect(w.at("#rows table")).to_have_attribute("aria-rowcount", "2001")
        w.expect(w.row("scan 1999.png")).to_be_visible()
        assert w.at("#body tr[data-id]").count() < 50
        w.at("#rows").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
        w.expect(w.row("scan 0.png")).to_be_visible()
        assert w.at("#body tr[data-id]").count() < 50


# --- colours ----------------------------------------------------------------------------------------------


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2's ratio of two colours."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _tokens(css):
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


@pytest.mark.parametrize("theme", ["light", "dark", "viewer"])
def test_words_are_seen_on_their_ground(theme):
    light, dark = TOKENS.read_text().split("@media (prefers-color-scheme: dark)")
    css = {
        "light": light,
        "dark": dark.split("@media print")[0],
        "viewer": (STATIC / "viewer.css").read_text(),
    }
    t = _tokens(css[theme])
    for ground in ("page", "card", "shade", "chosen"):
        assert contrast(t["ink"], t[ground]) >= 7, ground
        for ink in ("soft", "anomalous", "good", "accent"):
            assert contrast(t[ink], t[ground]) >= 4.5, (ink, ground)
    assert contrast(t["on-accent"], t["accent"]) >= 4.5
    for ground in ("page", "card"):  # what can be pressed has an edge that is seen
        assert contrast(t["edge"], t[ground]) >= 3, ground


def test_no_module_writes_markup():
    for file in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", file.read_text()
        ), file
