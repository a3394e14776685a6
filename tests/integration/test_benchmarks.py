"""The benchmarks' own arithmetic: ratios within rounds, the guard, the reference's dissolving."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks.robustness import stranger
from benchmarks.speed import quick, reference, scale
from dia.amplify.encoder import Encoder
from dia.data.phantoms import load
from dia.dissolve.schedule import one_step


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    r = common.Rounds({"a": [1.0, 9.0, 4.0], "b": [2.0, 3.0, 1.0]})
    assert r.seconds("a") == 4
    assert r.ratio("a", "b") == 3  # of .5, 3 and 4; the ratio of the medians would be 2


def test_rounds_take_turns_in_changing_order_and_leave_the_warm_up_out():
    calls = []
    r = common.rounds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert [len(x) for x in r.all.values()] == [3, 3]


def test_the_slope_of_proportional_seconds_is_one():
    rows = [{"images": n, "s": 0.003 * n} for n in (10, 100, 5000)]
    assert scale.slope(rows, "s") == pytest.approx(1)
    assert scale.slope([row | {"s": row["s"] ** 2} for row in rows], "s") == pytest.approx(2)


def test_generated_images_come_in_chunks_and_are_the_same_each_time():
    chunks = list(scale.generated(25, 24, chunk=10))
    assert [len(c) for c in chunks] == [10, 10, 5]
    again = np.concatenate(list(scale.generated(25, 24, chunk=10)))
    assert np.array_equal(np.concatenate(chunks), again)
    assert len(np.unique(again, axis=0)) > 15


@pytest.mark.parametrize(("now", "fails"), [(0.95, False), (0.80, True)])
def test_the_guard_fails_where_a_ratio_fell_by_more_than_a_tenth(now, fails, tmp_path, monkeypatch, capsys):
    steps, dissolve, score = {"whole / bare rate": now}, {"dissolve / bare": 1.0}, {"memory / bare": 0.9}
    monkeypatch.setattr(quick.train_step, "measure", lambda *a, **k: (steps, None))
    monkeypatch.setattr(quick.dissolve, "measure", lambda *a, **k: (dissolve, None))
    monkeypatch.setattr(quick.score, "measure", lambda *a, **k: (score, None))
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["quick.py"])
    kept = {"training step: whole / bare": 0.97, "dissolve / bare": 1.0}
    (tmp_path / "quick.json").write_text(json.dumps({"ratios": kept}))
    if fails:
        with pytest.raises(SystemExit, match="whole / bare"):
            quick.main()
    else:
        quick.main()
    assert "dissolve / bare" in capsys.readouterr().out


@pytest.fixture(scope="module")
def step():
    images = load("train", size=28, n=8).images
    return reference.ReferenceStep(images, Encoder(3, 4, 8, "cifar", 28), batch=4)


def test_the_reference_dissolves_small_images_padded(step):
    x = torch.rand(2, 3, 28, 28)
    padded = torch.zeros(2, 3, 32, 32)
    padded[..., 2:-2, 2:-2] = x
    y = padded * 2 - 1
    t = torch.full((2,), 60)
    with torch.no_grad():
        expected = one_step(y, step.unet(y, t).sample, step.alphas[t])[..., 2:-2, 2:-2] / 2 + 0.5
    torch.testing.assert_close(step.dissolve(x, 60), expected)


def test_a_reference_step_learns(step):
    before = [p.clone() for p in step.encoder.parameters()]
    assert np.isfinite(step())
    assert any(not torch.equal(a, b) for a, b in zip(before, step.encoder.parameters(), strict=True))


def test_a_stranger_runs_the_commands_of_one_section_in_order():
    page = "# A\n```sh\nno\n```\n## B\n```sh\none\ntwo\n```\n```text\nno\n```\n"
    page += "### C\n```python\nthree\n```\n## D\n```sh\nno\n```\n"
    assert stranger.steps(page, "B") == [("sh", "one\ntwo\n"), ("python", "three\n")]
    with pytest.raises(ValueError, match="E"):
        stranger.steps(page, "E")


def test_the_tutorial_goes_from_installing_to_a_report():
    texts = [
        s.text for s in stranger.steps((stranger.ROOT / "docs/tutorial.md").read_text(), "In five minutes")
    ]
    assert texts[0] == stranger.INSTALL
    assert [t.split()[1] for t in texts if t.startswith("dia ")] == ["fit", "score", "report"]
