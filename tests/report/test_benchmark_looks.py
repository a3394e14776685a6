"""The benchmark's page in a browser: it sorts, fits a phone in both colours, asks nothing of the network."""

import pytest
from browsing import Window, chromium
from test_benchmark_page import kept, line

from dia.report.benchmark.page import write_benchmark_report

SETS = ("pneumoniamnist", "breastmnist-128", "breastmnist-0-128", "kvasirseg_patches-128", "chestxray-128")
METHODS = ("trivial:pixels-normalised", "trivial:hog", "control:centre", "dia+", "dia", "csi", "transformaly")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    lines = [
        line(m, d, 0.5 + 0.05 * ((3 * i + 2 * j) % 9), fit_seconds=2.0**i, run_seconds=9.0, cpu_seconds=8.0)
        for i, m in enumerate(METHODS)
        for j, d in enumerate(SETS)
        if (m, d) != ("csi", SETS[0])
    ]
    kept(folder / "scores", lines)
    write_benchmark_report(folder / "out", lines, folder / "scores", title="A table")
    return (folder / "out" / "benchmark.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def column(window, number):
    """Names of the rows in sight, and their values in a column."""
    rows = window.at(".results tbody tr:not(.family)")
    names = [t.split()[0] for t in rows.locator("th").all_inner_texts()]
    return names, [t.split()[0] for t in rows.locator(f"td:nth-child({number})").all_inner_texts()]


def test_a_column_sorts_by_mouse_and_keyboard_and_back(browser, page):
    with Window(browser, page) as window:
        head = window.at(".results thead th", has_text=SETS[0]).first
        assert window.at(".results thead th button").count() == window.at(".results thead th").count()
        assert head.get_attribute("aria-sort") == "none"
        drawn = column(window, 3)
        head.locator("button").click()
        names, values = column(window, 3)
        assert head.get_attribute("aria-sort") == "descending"
        assert values[:-1] == sorted(values[:-1], reverse=True)
        assert (names[-1], values[-1]) == ("csi", "–")
        assert sorted(names) == sorted(drawn[0])
        head.locator("button").focus()
        window.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        names, again = column(window, 3)
        assert again == [*sorted(values[:-1]), "–"]
        other = window.at(".results thead th").first
        other.locator("button").click()
        assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("none", "ascending")
        assert column(window, 3)[0] == sorted(names)
        window.press("Space", "Space")
        assert other.get_attribute("aria-sort") == "none"
        assert column(window, 3) == drawn


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_wider_than_the_window_in_either_colour(browser, page, width, scheme):
    with Window(browser, page, width=width, color_scheme=scheme) as window:
        assert window.page.evaluate("document.documentElement.scrollWidth") == width
        ink, paper = (
            window.page.evaluate(f"getComputedStyle(document.body).{what}")
            for what in ("color", "backgroundColor")
        )
        light = [sum(map(int, c[4:-1].split(","))) for c in (ink, paper)]
        assert (light[0] < light[1]) == (scheme == "light")
        text = window.at(".cost .default text").first
        assert text.evaluate("e => getComputedStyle(e).fill") == ink
        box = window.at(".cost > svg").first.bounding_box()
        for name in window.at(".cost").first.locator(".o[class*=method] text, .o.default text").all():
            at = name.bounding_box()
            assert at["x"] >= 0
            assert at["x"] + at["width"] <= width
            assert box["y"] - 9 <= at["y"]


def test_the_heads_and_the_first_column_stay_in_sight(browser, page):
    with Window(browser, page, width=390, height=700) as window:
        scroll = window.at(".tall").first
        scroll.evaluate("e => e.scrollTo(200, 200)")
        box, head = scroll.bounding_box(), window.at(".results thead th").first.bounding_box()
        assert head["y"] - box["y"] < 2
        assert head["x"] - box["x"] < 2
        name = window.at(".results tbody tr:not(.family) th").nth(4).bounding_box()
        assert name["x"] - box["x"] < 2


def test_without_its_script_the_page_is_whole(browser, page):
    with Window(browser, page, java_script_enabled=False) as window:
        assert window.at(".results thead th button").count() == 0
        window.sees(".results", "transformaly")
        window.sees(".headline", "Best of the methods")
