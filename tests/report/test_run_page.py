"""The report page: whole without labels, heatmaps or masks; nothing from outside; names never run as HTML."""

import re

import numpy as np
import pytest
from pages import EVIL, Page

from dia.evaluate.learning_curve import Point, climbs
from dia.evaluate.metrics import image_metrics, pixel_metrics
from dia.evaluate.verdict import Finding, Verdict
from dia.report.run_page import ReportContent, _outline, _overlay, write_report


def content(n=40, channels=1, **changes):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    masks = np.zeros((n, 12, 10), bool)
    masks[labels == 1, 3:6, 4:7] = True
    heatmaps = rng.random((n, 12, 10)) + masks
    scores = rng.normal(size=n) + labels
    given = {
        "title": "A page",
        "method": "dia",
        "dataset": "blobs",
        "lead": "A first sentence.",
        "facts": [("Preset", "fast"), ("Seed", 0)],
        "metrics": {**image_metrics(labels, scores, n_boot=50), **pixel_metrics(masks, heatmaps)},
        "scores": scores,
        "labels": labels,
        "p_values": rng.random(n),
        "threshold": float(np.sort(scores)[-8]),
        "false_alarm_rate": 0.05,
        "names": [EVIL] * n,
        "images": rng.integers(0, 256, (n, 12, 10, channels), dtype=np.uint8),
        "heatmaps": heatmaps,
        "masks": masks,
        "dissolve_strip": [[("as it is", np.zeros((12, 10, channels), np.uint8))] * 3],
        "comparison": [
            {"method": "mean brightness", "auroc": 0.9, "kind": "trivial"},
            {"method": "dia", "auroc": 0.95, "auroc_ci": [0.9, 0.98], "pixel_auroc": 0.8, "kind": "ours"},
            {"method": "blur <b>", "auroc": 0.7, "auroc_ci": None, "kind": "control"},
        ],
        "notes": ["A plain sentence."],
    }
    return ReportContent(**{**given, **changes})


def page(tmp_path, **changes):
    html = write_report(tmp_path / "out" / "report.html", content(**changes)).read_text(encoding="utf-8")
    return Page(html), html


BARE = {"labels": None, "metrics": None, "heatmaps": None, "masks": None, "p_values": None, "threshold": None}
BARE |= {"false_alarm_rate": None, "dissolve_strip": (), "comparison": (), "notes": (), "facts": ()}


@pytest.mark.parametrize("changes", [{}, BARE, {"channels": 3}])
def test_nothing_comes_from_outside(tmp_path, changes):
    parsed, html = page(tmp_path, **changes)
    assert parsed.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in parsed.links)
    assert all(url.startswith("#") for url in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert "@import" not in html
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert parsed.count("script") == 0
    assert "default-src 'none'" in html


def test_names_and_notes_are_escaped(tmp_path):
    parsed, html = page(tmp_path, notes=[EVIL], title=EVIL, facts=[(EVIL, EVIL)])
    assert "<script" not in html
    assert parsed.count("b") == 0
    assert parsed.text.count(EVIL) > 16
    assert any(a.get("alt") == f"Image {EVIL}" for t, a in parsed.tags if t == "img")


def test_everything_is_on_the_page_in_order(tmp_path):
    parsed, _ = page(tmp_path)
    told = [
        "AUROC",
        "Average precision",
        "FPR95",
        "Pixel AUROC",
        "PRO",
        "How many images",
        "ROC.",
        "as it is",
    ]
    told += [
        "Found",
        "Missed",
        "False alarms",
        "Border cases",
        "Rightly not flagged",
        "trivial score",
        "Preset",
        "A plain sentence.",
        "research use",
    ]
    told += ["P(false alarm) ≤ 0.05", "exchangeable"]
    at = [parsed.text.index(words) for words in told]
    assert at == sorted(at)
    assert 40 > parsed.count("img") / 2 > 20
    assert all(a.get("alt") for t, a in parsed.tags if t == "img")
    assert parsed.count("h1") == 1
    assert parsed.text.count(" flagged") > 0
    # best first, whatever the order given
    assert parsed.text.index("0.950") < parsed.text.rindex("mean brightness") < parsed.text.index("blur <b>")


def test_every_kind_of_case_is_shown_with_its_place_among_the_normals(tmp_path):
    n = 40
    labels = np.arange(n) % 2
    scores = np.where(labels == 1, 3.0, -3.0) + np.arange(n) / 100
    scores[[1, 3]], scores[[0, 2, 4]] = -4.0, 5.0  # two missed, three false alarms
    scores[[20, 21]] = 1.01, 0.99  # either side of the threshold
    changes = {
        "scores": scores,
        "labels": labels,
        "threshold": 1.0,
        "names": [f"name-{i}!" for i in range(n)],
    }
    parsed, html = page(tmp_path, **changes, normal_scores=np.arange(10.0))
    part = dict(zip(("Found", "Missed", "False alarms", "Border cases", "Rightly"), ["h3"] * 5, strict=True))
    at = [parsed.text.index(f"{words} ") for words in part]
    assert at == sorted(at)
    found, missed, false, border, right = (
        {int(i) for i in re.findall(r"name-(\d+)!", text)} for text in np.array(_cut(parsed.text, at))
    )
    assert (missed, false, border) == ({1, 3}, {0, 2, 4}, {20, 21})
    assert (len(found), len(right)) == (8, 4)
    assert all(labels[i] for i in found)
    assert not any(labels[i] for i in right)
    assert "Missed 3" in parsed.text  # with the border case
    assert html.count('href="#normals"') == 8 + 2 + 3 + 2 + 4
    assert "scores higher than 5 of 10 normals" in html  # 5.0, among 0 to 9
    nothing, _ = page(tmp_path, **changes | {"scores": np.where(labels == 1, 9.0, -9.0)})
    assert re.search(r"Missed 0\s+None\.", nothing.text)


def _cut(text, at):
    return [text[a:b] for a, b in zip(at, [*at[1:], text.index("Comparison with")], strict=True)]


def test_the_page_opens_with_the_verdict(tmp_path):
    verdict = Verdict([Finding("flags", "bad", "44 of 234 <b>"), Finding("ranking", "good", "fine")])
    parsed, html = page(tmp_path, verdict=verdict)
    text = parsed.text
    assert text.index(verdict.headline) < text.index("44 of 234 <b>") < text.index("Average precision")
    assert "Of the images here: 44 of 234 <b>" in text  # beside what was promised
    assert 'class="verdict bad"' in html
    assert 'aria-label="speaks against it"' in html
    assert "Verdict" not in page(tmp_path)[0].text


def test_volumes_are_listed_by_their_highest_slice(tmp_path):
    names = ["a#0", "a#1", "b#0", "b#1", "b#2", "alone", "c<b>#0", "c<b>#1"]
    of = ["a", "a", "b", "b", "b", None, "c<b>", "c<b>"]
    changes = {
        "names": names,
        "volumes": of,
        "scores": np.array([1.0, 2.0, 0.5, 4.0, 3.0, 9.0, 1.5, 1.25]),
        "labels": np.array([0, 0, 0, 1, 0, 1, 0, 0]),
        "p_values": np.array([0.5, 0.3, 0.9, 0.125, 0.2, 0.01, 0.6, 0.7]),
        "threshold": 2.5,
    }
    parsed, _ = page(tmp_path, n=8, **changes)
    table = parsed.text[parsed.text.index("Which slice") :]
    cells = table[: table.index("as it is")].split()
    # volume, slices, highest, mean (of up to 5), p = slices times its, slices above 2.5, label, slice
    assert cells[2:10] == ["b", "3", "4", "2.5", "0.38", "2", "anomalous", "b#1"]
    assert cells[10:18] == ["a", "2", "2", "1.5", "0.6", "0", "normal", "a#1"]
    assert cells[18:26] == ["c<b>", "2", "1.5", "1.375", "1", "0", "normal", "c<b>#0"]
    assert "AUROC over 3 volumes" in parsed.text
    bare, _ = page(tmp_path, n=8, **{**BARE, "names": names, "volumes": of, "scores": changes["scores"]})
    assert "Which slice b 3 4 2.5 b#1 a 2" in " ".join(bare.text.split())
    assert "AUROC over" not in bare.text
    assert "Volumes" not in page(tmp_path, volumes=[None] * 40)[0].text


def test_without_labels_there_are_no_metrics(tmp_path):
    parsed, _ = page(tmp_path, **BARE)
    assert "without labels" in parsed.text
    for words in ("AUROC", "ROC", "FPR95", "label:", "flagged", "heatmap", "promises", "p = "):
        assert words not in re.sub("Heatmaps hint", "", parsed.text)
    assert parsed.count("svg", role="img") == 1  # the histogram alone
    assert parsed.count("img") == 16


@pytest.mark.parametrize("labels", [np.zeros(40, int), np.ones(40, int)])
def test_one_class_only(tmp_path, labels):
    parsed, _ = page(tmp_path, labels=labels, metrics=None)
    assert parsed.count("svg", role="img") == 1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_sets_show_no_image_twice(tmp_path, n):
    bare = {**BARE, "names": [f"name-{i}!" for i in range(n)]}
    parsed, _ = page(tmp_path, **bare, scores=np.ones(n), images=content().images[:n])
    assert [parsed.text.count(f"name-{i}!") for i in range(n)] == [1] * n


def test_unreachable_threshold_is_said(tmp_path):
    parsed, _ = page(tmp_path, threshold=np.inf)
    assert "There were too few normal images to calibrate on" in parsed.text
    assert "P(false alarm)" not in parsed.text


def test_flags_are_scores_above_the_threshold(tmp_path):
    parsed, _ = page(tmp_path, labels=None, metrics=None)
    assert "7 of 40" in parsed.text  # the eighth highest score is the threshold, and not above it


def test_same_content_same_page(tmp_path):
    assert page(tmp_path)[1] == page(tmp_path)[1]


def test_large_images_are_reduced(tmp_path):
    big = np.zeros((2, 1500, 900, 1), np.uint8)
    parsed, html = page(tmp_path, **BARE, scores=np.arange(2.0), names=["a", "b"], images=big)
    assert len(html) < 100_000
    assert 'class="cards sharp"' not in html
    assert parsed.count("img") == 2


def test_outline_and_overlay_by_hand():
    mask = np.zeros((4, 5), bool)
    assert _outline(mask) == ""
    mask[1, 2] = True  # its centre lies at x = 2.5, y = 1.5: the border passes half a pixel from it
    points = {tuple(map(float, p.split())) for p in _outline(mask).strip("MZ").split(" L")}
    assert points == {(2.0, 1.5), (3.0, 1.5), (2.5, 1.0), (2.5, 2.0)}
    image = np.full((1, 2, 1), 100, np.uint8)
    cold, hot = _overlay(image, np.array([[-5.0, 9.0]]), (0, 1))[0]
    assert cold.tolist() == [100, 100, 100]
    assert hot.tolist() == pytest.approx(20 + 0.8 * 255 * np.array([0.988362, 0.998364, 0.644924]), abs=1)


def test_the_curve_over_the_number_of_normals_is_shown_with_a_sentence(tmp_path):
    points = [Point(5, (0.6, 0.7)), Point(20, (0.70, 0.71)), Point(40, (0.9,))]
    shown, _ = page(tmp_path, curve=points)
    assert "Would more normals help?" in shown.text
    assert climbs(points) in shown.text
    assert "still climbs" in shown.text
    assert "Would more normals help?" not in page(tmp_path)[0].text
