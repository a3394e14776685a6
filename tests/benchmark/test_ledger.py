"""The ledger through kills and concurrent writers."""

import json
import multiprocessing
import warnings

import numpy as np
import pytest

from dia.benchmark.ledger import REQUIRED, Ledger, identity, update_section


def record(**changes):
    return {
        "dataset": "breast",
        "method": "dia",
        "preset": "fast",
        "seed": 0,
        "auroc": 0.8,
        "auroc_ci": [0.7, 0.9],
        "ap": 0.6,
        "fit_seconds": 10.0,
        "score_images_per_second": 100.0,
        "peak_memory_mb": 500.0,
        "device": "cpu",
        "weights": "none",
        "data_sha256": "d",
        "settings_hash": "s",
        "revision": 1,
        "settings": {"amplify.crop": [0.3, 1.0]},
        "weights_kind": "none",
        "holdout": 0.2,
        "commit": None,
        "versions": {"python": "3.11"},
        **changes,
    }


def test_rows_come_back_as_appended(tmp_path):
    book = Ledger(tmp_path / "deep" / "runs.jsonl")
    assert book.rows() == []
    book.append(record(auroc=np.float32(0.5), auroc_ci=np.array([0.25, 0.75]), note="é\nnew line"))
    book.append(record(seed=1))
    first, second = book.rows()
    assert first == record(auroc=0.5, auroc_ci=[0.25, 0.75], note="é\nnew line")
    assert second["seed"] == 1


@pytest.mark.parametrize("field", REQUIRED)
def test_every_required_field_is_asked_for(tmp_path, field):
    book = Ledger(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match=f"lacks {field}"):
        book.append({k: v for k, v in record().items() if k != field})
    assert not book.path.exists()


@pytest.mark.parametrize("wrong", [{"auroc": float("nan")}, {"auroc_ci": [0.5]}, {"note": object()}])
def test_what_json_cannot_hold_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"JSON|auroc_ci"):
        Ledger(tmp_path / "runs.jsonl").append(record(**wrong))


def test_torn_last_line_is_passed_over_and_mended(tmp_path):
    book = Ledger(tmp_path / "runs.jsonl")
    book.append(record(seed=0))
    whole = book.path.read_bytes()
    for cut in (1, 40, len(whole) - 2):
        book.path.write_bytes(whole + whole[:cut])
        assert [r["seed"] for r in book.rows()] == [0]
        with pytest.warns(UserWarning, match=f"dropped a torn last line \\({cut} bytes"):
            book.append(record(seed=1))
        assert [r["seed"] for r in book.rows()] == [0, 1]
        assert book.path.read_bytes().count(b"\n") == 2


def test_last_line_without_line_end_is_kept(tmp_path):
    book = Ledger(tmp_path / "runs.jsonl")
    book.path.write_text(json.dumps(record(seed=7)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        book.append(record(seed=8))
    assert [r["seed"] for r in book.rows()] == [7, 8]


def test_damage_before_the_end_is_an_error_that_names_the_line(tmp_path):
    book = Ledger(tmp_path / "runs.jsonl")
    book.path.write_text(json.dumps(record()) + "\n{half\n" + json.dumps(record()) + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl:2"):
        book.rows()


def append_many(path, worker):
    for i in range(20):
        Ledger(path).append(record(seed=worker * 100 + i, note="x" * 20_000))


def test_processes_append_whole_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=append_many, args=(path, w)) for w in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    seeds = [r["seed"] for r in Ledger(path).rows()]
    assert sorted(seeds) == [w * 100 + i for w in range(4) for i in range(20)]
    for w in range(4):  # each worker's own order holds
        mine = [s for s in seeds if s // 100 == w]
        assert mine == sorted(mine)


def test_a_run_is_found_by_its_values_and_not_by_its_hash(tmp_path):
    book = Ledger(tmp_path / "runs.jsonl")
    assert book.find(record()) is None
    book.append(record())
    assert book.find(record(settings_hash="of an earlier version", auroc=0.1)) is not None
    others = [
        {"dataset": "other"}, {"method": "csi"}, {"revision": 2}, {"preset": "gpu"}, {"seed": 1},
        {"settings": {}}, {"settings": {"amplify.crop": [0.3, 0.9]}}, {"data_sha256": "e"}, {"holdout": 0.3},
        {"encoder": {"method": "dia", "settings": {}}},
    ]  # fmt: skip
    for other in others:
        assert book.find(record(**other)) is None


def test_lines_that_do_not_say_their_settings_are_read_and_are_no_run_that_is_sought(tmp_path):
    book = Ledger(tmp_path / "runs.jsonl")
    later = ("revision", "settings", "weights_kind", "holdout")
    old = {k: v for k, v in record().items() if k not in later}
    history = record(settings=None, revision=None, holdout=None)
    book.path.write_text("".join(json.dumps(r) + "\n" for r in (old, history)))
    assert book.rows() == [old, history]
    assert book.find(record()) is None
    book.path.write_text(json.dumps(record(settings="a5")) + "\n" + json.dumps(record()))
    with pytest.raises(ValueError, match=r"runs\.jsonl:1: settings must be an object or null"):
        book.rows()
    assert identity(record(settings={"a": 1, "b": 2})) == identity(record(settings={"b": 2, "a": 1}))


def test_update_section(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "# a\n<!-- runs:begin -->\nold\n<!-- runs:end -->\n<!-- other:begin --><!-- other:end -->\n"
    )
    assert update_section(page, "runs", r"| 1 \g<0> |")
    assert not update_section(page, "runs", r"| 1 \g<0> |")
    wanted = (
        "# a\n<!-- runs:begin -->\n| 1 \\g<0> |\n<!-- runs:end -->\n<!-- other:begin --><!-- other:end -->\n"
    )
    assert page.read_text() == wanted
    with pytest.raises(ValueError, match="exactly once"):
        update_section(page, "absent", "x")
