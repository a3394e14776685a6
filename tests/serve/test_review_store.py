"""The file of marks: what was saved is there, whoever else writes and however the process ends."""

import csv
import io
import re
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dia.core.errors import DataError
from dia.data.formats.spreadsheet import plain_cell
from dia.serve.review.store import COLUMNS, Mark, Reviews, as_csv

MARK = Mark("a.png", "0" * 64, 1.5, 0.04, True, 0.05, "agree", "left edge", "R. Eader", model="m")


def test_a_mark_is_found_again_by_another_object_and_only_for_its_image_and_model(tmp_path):
    saved = Reviews(tmp_path / "new" / "marks.sqlite").save(MARK)
    again = Reviews(tmp_path / "new" / "marks.sqlite")
    assert again.find("m", MARK.sha256) == saved == replace(MARK, time=saved.time)
    assert again.find("other", MARK.sha256) is None
    assert again.find("m", "1" * 64) is None


def test_the_last_mark_of_an_image_counts_and_one_that_says_nothing_removes_it(tmp_path):
    reviews = Reviews(tmp_path / "marks.sqlite")
    reviews.save(MARK)
    reviews.save(replace(MARK, verdict="disagree", note=""))
    (kept,) = reviews.of_model("m")
    assert (kept.verdict, kept.note) == ("disagree", "")
    assert reviews.save(replace(MARK, verdict="", note="")).time == ""
    assert reviews.of_model("m") == []


def test_a_note_alone_is_a_mark(tmp_path):
    reviews = Reviews(tmp_path / "marks.sqlite")
    reviews.save(replace(MARK, verdict=""))
    assert reviews.find("m", MARK.sha256).note == "left edge"


def test_an_unknown_verdict_is_refused(tmp_path):
    with pytest.raises(ValueError, match="agree, disagree or empty, not 'perhaps'"):
        Reviews(tmp_path / "marks.sqlite").save(replace(MARK, verdict="perhaps"))


def test_the_file_is_for_its_owner_only(tmp_path):
    reviews = Reviews(tmp_path / "marks.sqlite")
    reviews.save(MARK)
    assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_another_file_is_named_and_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a database, but long enough to look like one" * 40)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE theirs (x)")
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(DataError, match=path.name):
            Reviews(path)
        assert path.read_bytes() == before


def test_a_mark_that_cannot_be_saved_is_an_error_not_a_silence(tmp_path):
    reviews = Reviews(tmp_path / "marks.sqlite")
    with sqlite3.connect(reviews.path) as db:
        db.execute("DROP TABLE marks")
    with pytest.raises(DataError, match="was not saved"):
        reviews.save(MARK)


def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "marks.sqlite"

    def write(who):
        for i in range(15):
            Reviews(path).save(replace(MARK, sha256=f"{who}-{i}"))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.sha256 for m in Reviews(path).of_model("m")} == {
        f"{w}-{i}" for w in range(4) for i in range(15)
    }


def test_what_was_said_to_be_saved_survives_a_kill(tmp_path):
    code = (
        "import sys; from dia.serve.review.store import Mark, Reviews; from itertools import count\n"
        "reviews = Reviews(sys.argv[1])\n"
        "for i in count():\n"
        "    reviews.save(Mark('a', str(i), 1.0, 0.5, False, 0.05, 'agree', model='m'))\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "marks.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    said = [writer.stdout.readline().strip() for _ in range(20)]
    writer.kill()
    said += writer.communicate()[0].split()
    assert {m.sha256 for m in Reviews(path).of_model("m")} >= set(said)


def test_csv_has_every_field():
    (header, row) = csv.reader(io.StringIO(as_csv([replace(MARK, note='says "no",\nand more')])))
    assert tuple(header) == COLUMNS
    assert row == ["a.png", "0" * 64, "1.5", "0.04", "true", "0.05", "agree", 'says "no",\nand more',
                   "R. Eader", "", "m"]  # fmt: skip


@given(st.text(alphabet=st.sampled_from("=+-@\t\r\n ,;\"'a1|"), max_size=6))
def test_no_cell_of_text_begins_as_a_formula_and_none_is_lost(text):
    (_, row) = csv.reader(io.StringIO(as_csv([replace(MARK, note=text, name=text, score=-2.0)]), newline=""))
    for cell in (row[0], row[7]):
        assert re.fullmatch(r"[+-]?1+(,1+)?", text) or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert plain_cell(cell) == text
    assert float(row[2]) == -2  # a number is no formula
