"""The file of marks: what was answered is there, whoever else writes, deletes or kills."""

import csv
import io
import json
import random
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
from dia.serve.room.mark import COLUMNS, MOST_BOXES, Box, Key, Mark, Seen, as_coco, as_csv, checked_note
from dia.serve.room.store import Marks

KEY = Key("lineage", "a" * 64, "R. Eader")
SEEN = Seen(True, 0.05, 1.5, 0.04, 0, ("a" * 64,), (20, 30), "model")
MANY = Seen(True, 0.05, 1.5, 0.04, 2, ("0", "1", "2", "3"), (20, 30), "model")


@pytest.fixture
def marks(tmp_path):
    return Marks(tmp_path / "new" / "marks.sqlite")


def test_a_mark_is_found_by_another_object_and_only_for_its_image_lineage_and_reader(marks):
    made = marks.change(KEY, SEEN, verdict="agree", note="left edge")
    again = Marks(marks.path)
    assert again.find(KEY) == made
    assert [again.find(KEY._replace(**{name: "other"})) for name in Key._fields] == [None] * 3
    assert again.of_case(KEY.lineage, KEY.sha256) == again.of_lineage(KEY.lineage) == [made]
    assert again.of_lineage(KEY.lineage, ["b" * 64]) == []


def test_a_change_touches_what_is_given_alone(marks):
    marks.change(KEY, SEEN, verdict="agree", note="left", boxes=[Box(0, 1, 2, 3, 4)])
    later = Seen(False, 0.01, 0.5, 0.9, 0, SEEN.images, SEEN.shape, "updated")
    noted = marks.change(KEY, later, note="right")
    assert (noted.verdict, noted.note, noted.boxes) == ("agree", "right", (Box(0, 1, 2, 3, 4),))
    assert (noted.flagged, noted.rate, noted.model) == (True, 0.05, "model"), (
        "the flag that the verdict was about"
    )
    again = marks.change(KEY, later, verdict="disagree")
    assert (again.note, again.flagged, again.rate, again.model) == ("right", False, 0.01, "updated")


def test_the_same_verdict_of_another_flag_is_a_change_and_the_same_again_is_none(marks):
    first = marks.change(KEY, SEEN, verdict="agree")
    assert marks.change(KEY, SEEN, verdict="agree") == first
    other = marks.change(KEY, Seen(False, 0.01, 1.5, 0.04, 0, SEEN.images, SEEN.shape, "m"), verdict="agree")
    assert (first.label, other.label, other.history) == (1, 0, 2)


@pytest.mark.parametrize(
    ("verdict", "flagged", "label"),
    [
        ("agree", 1, 1),
        ("disagree", 1, 0),
        ("agree", 0, 0),
        ("disagree", 0, 1),
        ("unsure", 1, None),
        ("", 1, None),
    ],
)
def test_the_label_follows_from_verdict_and_flag(marks, verdict, flagged, label):
    seen = Seen(bool(flagged), 0.05, 1.5, 0.04, 0, SEEN.images, SEEN.shape, "m")
    assert marks.change(KEY, seen, verdict=verdict, note="n").label == label


def test_undo_goes_back_change_by_change_and_past_an_undo(marks):
    marks.change(KEY, SEEN, verdict="agree")
    marks.change(KEY, SEEN, note="one")
    marks.change(KEY, SEEN, note="two")
    assert [marks.undo(KEY).note for _ in range(2)] == ["one", ""]
    marks.change(KEY, SEEN, note="three")
    assert (marks.undo(KEY).note, marks.undo(KEY).verdict, marks.undo(KEY)) == ("", "", None)
    assert marks.of_lineage(KEY.lineage) == []


def test_what_anothers_window_changed_last_is_undone_first(marks):
    marks.change(KEY, SEEN, verdict="agree")
    Marks(marks.path).change(KEY, SEEN, verdict="unsure")
    assert marks.undo(KEY).verdict == "agree"
    marks.change(KEY._replace(reader="another"), SEEN, verdict="disagree")
    assert marks.undo(KEY).verdict == "", "another reader's change is not mine to undo"


def test_a_volumes_mark_is_about_the_slice_with_a_box_else_the_worst(marks):
    assert marks.change(KEY, MANY, verdict="agree").image == "2"
    boxed = marks.change(KEY, MANY, boxes=[Box(3, 1, 1, 2, 2), Box(1, 1, 1, 2, 2)])
    assert (boxed.slice, boxed.image, boxed.slices) == (3, "3", 4)


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({"verdict": "perhaps"}, "agree, disagree, unsure"),
        ({"note": "x" * 2001}, "at most 2000 characters, not 2001"),
        ({"note": "a\x00b"}, "control"),
        ({"note": "a\x1b[31m"}, "control"),
        ({"note": "a\u202eb"}, "control"),
        ({"note": "a\ud800b"}, "control"),
        ({"boxes": [Box(0, 0, 0, 1, 1)] * (MOST_BOXES + 1)}, "at most 100 boxes"),
        ({"boxes": [Box(0, 0, 0, 0, 1)]}, "above 0"),
        ({"boxes": [Box(0, float("nan"), 0, 1, 1)]}, "above 0"),
        ({"boxes": [Box(1, 0, 0, 1, 1)]}, "slice 1, of 1"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(marks, given_, why):
    before = marks.change(KEY, SEEN, verdict="agree")
    with pytest.raises(ValueError, match=why):
        marks.change(KEY, SEEN, **given_)
    assert marks.find(KEY) == before


def test_line_ends_of_a_note_are_plain_and_a_tab_is_a_space():
    assert checked_note("a\r\nb\rc\td\n") == "a\nb\nc d\n"


def test_the_files_are_for_their_owner_only(marks):
    with marks._writing():  # while there is a log beside it
        assert len(list(marks.path.parent.iterdir())) > 2
        assert {p.stat().st_mode & 0o077 for p in marks.path.parent.iterdir()} == {0}


def test_a_mark_and_a_note_from_two_windows_at_once_are_both_kept(marks):
    for i in range(50):
        key, start = KEY._replace(sha256=str(i)), threading.Barrier(2)

        def change(key=key, start=start, **what):
            start.wait()
            Marks(marks.path).change(key, SEEN, **what)

        threads = [threading.Thread(target=change, kwargs=w) for w in ({"verdict": "agree"}, {"note": "n"})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = marks.find(key)
        assert (found.verdict, found.note, found.history) == ("agree", "n", 2)


WRITER = """
import sys
from itertools import count
from dia.serve.room.store import Marks
from dia.serve.room.mark import Key, Seen
marks, who = Marks(sys.argv[1]), sys.argv[2]
for i in count():
    key = Key("lineage", str(i % 7), who)
    marks.change(key, Seen(True, .05, 1., .1, 0, ("a",), (1, 1), "m"), verdict="agree", note=f"{who} {i}")
    print(i, flush=True)
"""


@pytest.mark.parametrize("rounds", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_what_was_answered_survives_kills_of_two_servers_on_one_file(marks, rounds):
    """In each round two writers are killed."""
    draw = random.Random(0)
    for turn in range(rounds):
        names = [f"{turn}a", f"{turn}b"]
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(marks.path), who], stdout=subprocess.PIPE, text=True
            )
            for who in names
        ]
        said = {who: [] for who in names}
        for who, writer in zip(names, writers, strict=True):
            said[who] = [writer.stdout.readline() for _ in range(draw.randrange(1, 12))]
        for who, writer in zip(names, writers, strict=True):
            writer.kill()
            said[who] += writer.communicate()[0].splitlines()
        for who, lines in said.items():
            last = {int(i) % 7: int(i) for i in lines if i.strip()}
            for sha, i in last.items():
                found = marks.find(Key("lineage", str(sha), who))
                assert int(found.note.split()[1]) >= i
    with sqlite3.connect(marks.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("with_log", [True, False])
def test_a_file_that_is_deleted_meanwhile_is_made_anew_with_its_table_for_its_owner(marks, with_log):
    marks.change(KEY, SEEN, verdict="agree")
    if with_log:  # a log that is left of a deleted file must not be read into the new one
        with marks._writing() as db:
            db.execute("UPDATE changes SET note = 'of the old file'")
            log = marks.path.with_name(marks.path.name + "-wal").read_bytes()
            marks.path.unlink()
        marks.path.with_name(marks.path.name + "-wal").write_bytes(log)
    else:
        marks.path.unlink()
    assert marks.of_lineage("lineage") == []
    other = KEY._replace(sha256="b" * 64)
    made = marks.change(other, SEEN, note="new")
    assert marks.of_lineage("lineage") == [made]
    assert marks.path.stat().st_mode & 0o077 == 0


def test_many_find_the_deleted_file_at_once_and_none_loses_its_mark(marks):
    for _ in range(10):
        marks.path.unlink()
        start = threading.Barrier(6)

        def change(i, start=start):
            start.wait()
            Marks(marks.path).change(KEY._replace(sha256=str(i)), SEEN, verdict="agree")

        threads = [threading.Thread(target=change, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {m.key.sha256 for m in marks.of_lineage("lineage")} == {str(i) for i in range(6)}


def test_a_mark_that_cannot_be_saved_is_one_line(marks):
    marks.path.unlink()
    marks.path.mkdir()
    with pytest.raises(DataError, match=r"the mark was not saved \(.*\)\Z"):
        marks.change(KEY, SEEN, verdict="agree")


def test_another_file_is_named_and_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a database, but long enough to look like one" * 40)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE theirs (x)")
    for path in (text, other):
        path.chmod(0o644)
        before = path.read_bytes()
        with pytest.raises(DataError, match=path.name):
            Marks(path)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (before, 0o644)


def test_a_file_of_before_slices_had_numbers_is_taken_over_with_its_marks(marks):
    boxed = marks.change(KEY, MANY, verdict="agree", boxes=[Box(3, 1, 1, 2, 2)])
    with sqlite3.connect(marks.path) as db:  # as it was
        db.execute("ALTER TABLE changes DROP COLUMN numbers")
        db.execute("PRAGMA user_version = 2")
    again = Marks(marks.path)
    assert again.find(KEY) == boxed
    noted = again.change(KEY, replace(MANY, numbers=(0, 1, 4, 5)), note="seen again")
    assert (noted.boxes, noted.boxes_told()[0]["slice"]) == (boxed.boxes, 5)
    assert Marks(marks.path).find(KEY) == noted, "once"
    assert again.undo(KEY).boxes == boxed.boxes


def test_marks_of_0_1_are_taken_over_without_the_names_of_files(tmp_path):
    path = tmp_path / "reviews.sqlite"
    with sqlite3.connect(path) as db:  # as 0.1 made it
        db.execute(
            "CREATE TABLE marks (name TEXT, sha256 TEXT, score REAL, p_value REAL, flagged INTEGER, "
            "rate REAL, verdict TEXT, note TEXT, reviewer TEXT, time TEXT, model TEXT, "
            "PRIMARY KEY (model, sha256))"
        )
        db.execute("PRAGMA user_version = 1")
        for i in range(30):
            row = (f"Meyer^Anna-{i}.png", f"sha{i}", 1.5, 0.04, 1, 0.05, "disagree", "n", "Dr. B", "t", "m")
            db.execute(f"INSERT INTO marks VALUES ({', '.join('?' * 11)})", row)
    db.close()
    path.chmod(0o644)
    marks = Marks(path)
    assert len(marks.of_lineage("m")) == 30
    found = marks.find(Key("m", "sha3", "Dr. B"))
    assert (found.verdict, found.note, found.label, found.image, found.history) == (
        "disagree",
        "n",
        0,
        "sha3",
        1,
    )
    assert marks.change(found.key, SEEN, note="more").verdict == "disagree"
    assert all(b"Meyer" not in p.read_bytes() for p in tmp_path.iterdir())
    assert path.stat().st_mode & 0o077 == 0
    assert len(Marks(path).of_lineage("m")) == 30, "once"


def test_no_name_of_a_file_has_a_place_in_it(marks):
    with sqlite3.connect(marks.path) as db:
        columns = {row[1] for row in db.execute("PRAGMA table_info(changes)")}
    assert columns == {
        "id", "lineage", "sha256", "reader", "verdict", "note", "boxes", "slice", "image", "slices", "height",
        "width", "flagged", "rate", "score", "p_value", "model", "time", "history", "before", "numbers",
    }  # fmt: skip


def test_the_version_grows_with_each_change_and_undo(marks):
    found = [marks.version()]
    marks.change(KEY, SEEN, verdict="agree")
    found.append(marks.version())
    marks.undo(KEY)
    found.append(marks.version())
    assert found == sorted(set(found))


# --- exports ----------------------------------------------------------------------------------------------


def test_csv_has_every_column(marks):
    one = marks.change(KEY, SEEN, verdict="agree", note='says "no",\nand more')
    volume = marks.change(KEY._replace(sha256="v"), MANY, boxes=[Box(3, 1, 2, 3, 4)])
    header, first, second = csv.reader(io.StringIO(as_csv([("a.png", one), ("v.nii", volume)]), newline=""))
    assert tuple(header) == COLUMNS
    assert first == [
        "a.png", "", "a" * 64, "1.5", "0.04", "true", "0.05", "agree", "1", 'says "no",\nand more', "",
        "R. Eader", one.time, "model",
    ]  # fmt: skip
    assert second[:3] == ["v.nii", "3", "3"]
    assert second[8] == ""
    assert json.loads(second[10]) == [{"slice": 3, "x": 1, "y": 2, "w": 3, "h": 4}]


@given(st.text(alphabet=st.sampled_from("=+-@\t\n ,;\"'a1|"), max_size=6))
def test_no_cell_of_text_begins_as_a_formula_and_none_is_lost(text):
    mark = Mark(
        Key("l", "s", text), "agree", text, (), 0, "s", 1, (1, 1), True, 0.05, -2.0, 0.1, "m", "t", 1
    )  # fmt: skip
    (_, row) = csv.reader(io.StringIO(as_csv([(text, mark)]), newline=""))
    for at in (0, 9, 11):
        assert plain_cell(row[at]) == text
        assert not row[at] or row[at][0] not in "=+@\t" or row[at][1:].isdigit()


def test_coco_has_an_image_for_each_slice_with_boxes_and_an_annotation_for_each_box(marks):
    boxes = [Box(3, 1, 2, 3, 4), Box(1, 0, 0, 5.5, 2), Box(3, 9, 9, 1, 1)]
    volume = marks.change(KEY, MANY, verdict="agree", boxes=boxes)
    other = marks.change(KEY._replace(reader="B"), MANY, boxes=[Box(3, 2, 2, 2, 2)])
    bare = marks.change(KEY._replace(sha256="bare"), SEEN, verdict="unsure")
    found = as_coco([("v.nii", volume), ("v.nii", other), ("", bare)])
    assert [(i["id"], i["file_name"], i["height"], i["width"]) for i in found["images"]] == [
        (1, "v.nii#1", 20, 30), (2, "v.nii#3", 20, 30), (3, "bare", 20, 30),
    ]  # fmt: skip
    boxes = [(a["id"], a["image_id"], a["bbox"], a["area"], a["reviewer"]) for a in found["annotations"]]
    assert boxes == [
        (1, 1, [0, 0, 5.5, 2], 11, "R. Eader"), (2, 2, [1, 2, 3, 4], 12, "R. Eader"),
        (3, 2, [9, 9, 1, 1], 1, "R. Eader"), (4, 2, [2, 2, 2, 2], 4, "B"),
    ]  # fmt: skip
    assert found["categories"] == [{"id": 1, "name": "anomaly"}]
