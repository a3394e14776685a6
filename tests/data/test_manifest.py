"""Manifests as people save them: separators, encodings, quotes, further columns, workbooks; and bad ones."""

from __future__ import annotations

import csv
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data.formats import spreadsheet
from dia.data.formats.spreadsheet import csv_text, marked, plain_cell, read_sheet, safe_cell
from dia.data.readers import MissingSplit, listing, read
from dia.deploy.scorefile import FIELDS, ScoreFile
from dia.report.gather import scores_by_name

RNG = np.random.default_rng(0)


def save(path: Path, pixels=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (8, 6), np.uint8) if pixels is None else pixels).save(path)
    return path


def manifest(root: Path, text: str | bytes, name: str = "list.csv") -> Path:
    for image in ("a.png", "b.png", "sub/c.png"):
        save(root / image)
    save(root / "m.png", np.full((8, 6), 255, np.uint8))
    path = root / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def fails(match: str, path: Path, error=DataError, **kwargs) -> None:
    with pytest.raises(error, match=match) as e:
        read(path, **kwargs)
    assert "\n" not in str(e.value)


def test_manifest(tmp_path):
    text = (
        "\ufeffPath, label,mask,split\na.png,normal,,train\nb.png,Good,,test\n\nsub/c.png,defect,m.png,test\n"
    )
    path = manifest(tmp_path, text)
    assert list(read(path).names) == ["a.png", "b.png", "sub/c.png"]
    test = read(path, split="test")
    assert test.labels.tolist() == [0, 1]
    assert test.masks.sum(axis=(1, 2)).tolist() == [0, 48]
    fails("no split 'val'; there are: test, train", path, MissingSplit, split="val")


def test_manifest_without_labels_or_splits(tmp_path):
    path = manifest(tmp_path, "path,label\na.png,\nb.png,\n")
    assert read(path, split="val").labels is None
    path = manifest(tmp_path, "label,path\ncat,a.png\ndog,b.png\n")
    assert read(path, normal="dog").labels.tolist() == [1, 0]
    fails("no row has the label cow", path, normal="cow")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1: the header must be"),
        ("a.png,0\n", "line 1: the header must be"),
        ("path|label\na.png|0\n", "line 1: the header must be"),
        ("sep=|\npath|label\na.png|0\n", "line 1: columns are not separated by"),
        (
            "path,label,x;path;label\na.png,0,y;a.png;0\n",
            "may be separated by commas or semicolons; keep one",
        ),
        ("path,label,Path\na.png,0,b.png\n", "line 1: two columns are called 'path'"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,0\nx.png,0\n", r"line 3: no such file: .*x\.png"),
        ("path,label\n,0\n", "line 2: no such file"),
        (f"path,label\n{'x' * 300}.png,0\n", "line 2: (File name too long|no such file)"),
        ("path,label\na.png,maybe\n", "line 2: unknown label 'maybe'"),
        ("path,label\na.png,0\nb.png,\n", "line 3: either all labels are empty or none"),
        ("path,label\na.png,0\na.png,0\n", r"line 3: a\.png is listed twice"),
        ("path,label\na.png,0,extra\n", "line 2: the number of fields"),
        ("path,label,mask\na.png,0\n", "line 2: the number of fields"),
        ("path,label,mask\na.png,1,x.png\n", r"line 2: no such file: .*x\.png"),
        ("path,label,mask\na.png,1,m.png\nb.png,1,\n", r"b\.png: no mask"),
        ("path,label,split\na.png,0,dev\n", "line 2: unknown split 'dev'"),
        ("path,label,split\na.png,0,train\nb.png,0,\n", "line 3: either all splits are empty or none"),
        ("path,label,patient\na.png,0,p1\nb.png,0,\n", "line 3: either all patients are empty or none"),
        ('path,label\n"a.png,0\nb.png,0\n', "not a readable CSV file, below row 1"),
        ("path,label\na.png,0\n".encode("utf-16-le"), "zero bytes.*save it as CSV in UTF-8"),
        (b"path,label\n\x81.png,0\n", "not in UTF-8 nor cp1252"),
        (b"\xef\xbb\xbfpath,label\n\xe4.png,0\n", "not UTF-8"),
    ],
)
def test_bad_manifests(tmp_path, text, match):
    fails(match, manifest(tmp_path, text))


def test_a_manifest_that_is_not_text(tmp_path):
    fails("not a readable CSV", save(tmp_path / "x.png").rename(tmp_path / "x.csv"))


ROWS = [
    ["Label", "PATH", "Bemerkung"],
    ["normal", "sub/c.png", 'links, "oben";\nneu'],
    ["defect", "ä.png", ""],
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("cp1252", "cp1252")],
)
def test_what_spreadsheets_save_is_read_right_and_told(tmp_path, separator, encoding, said, caplog):
    with (tmp_path / "rows.txt").open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([*ROWS, ["", "", ""], []])  # blank lines at the end
    save(tmp_path / "ä.png")
    path = manifest(tmp_path, (tmp_path / "rows.txt").read_bytes())
    with caplog.at_level(logging.INFO, "dia"):
        found = listing(path)
    assert list(found.names) == ["sub/c.png", "ä.png"]
    assert found.labels.tolist() == [0, 1]
    assert found.extra == {"sub/c.png": {"Bemerkung": 'links, "oben";\nneu'}, "ä.png": {"Bemerkung": ""}}
    word = {",": "commas", ";": "semicolons", "\t": "tabs"}[separator]
    assert f"read as {said}" in caplog.text
    assert f"separated by {word}" in caplog.text
    assert "kept beside ours: Bemerkung" in caplog.text


def test_excel_names_its_separator(tmp_path):
    path = manifest(tmp_path, "sep=;\r\npath;label\r\na.png;0\r\n")
    assert list(read(path).names) == ["a.png"]
    fails("line 3: no such file", manifest(tmp_path, "sep=;\r\npath;label\r\nx.png;0\r\n"))


def test_paths_of_windows_of_both_unicode_forms_and_as_dia_wrote_them(tmp_path):
    for name in ("ö.png", "=1.png"):
        save(tmp_path / name)
    decomposed = "o\u0308.png"  # as macOS stores it
    path = manifest(tmp_path, f"path,label\nsub\\c.png,0\n{decomposed},0\n'=1.png,0\n")
    assert list(listing(path).names) == ["sub/c.png", "ö.png", "=1.png"]
    save(
        tmp_path / "sub\\c.png", np.full((8, 6), 7, np.uint8)
    )  # a name that holds a backslash is taken first
    assert read(path, size=8).images[0].max() == 7


def test_a_column_that_is_nearly_ours_is_told(tmp_path):
    path = manifest(tmp_path, "path,label,spilt,Patient_ID,age\na.png,0,train,p,3\n")
    with pytest.warns(UserWarning, match="is only copied") as said:
        found = listing(path)
    assert [str(w.message).partition("; ")[2] for w in said] == [
        "to use it as split, call it split", "to use it as patient, call it patient",
    ]  # fmt: skip
    assert found.extra["a.png"] == {"spilt": "train", "Patient_ID": "p", "age": "3"}


# --- .xlsx --------------------------------------------------------------------------------------------


def workbook(path: Path, sheets: dict[str, list[list]]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_read_from_the_sheet_with_the_paths(tmp_path):
    manifest(tmp_path, "")
    rows = [
        [None],
        ["Path", "LABEL", "patient", "Alter"],
        ["a.png", 0, 12345678.0, 3.5],
        ["b.png", 1, "07", None],
    ]
    path = workbook(tmp_path / "list.xlsx", {"Notes": [["read me"]], "Bilder": [*rows, [None, None]]})
    found = listing(path)
    assert list(found.names) == ["a.png", "b.png"]
    assert [e.patient for e in found.entries] == ["12345678", "07"]
    assert found.labels.tolist() == [0, 1]
    assert found.extra == {"a.png": {"Alter": "3.5"}, "b.png": {"Alter": ""}}
    fails("row 2: a cell is filled to the right", workbook(
        tmp_path / "b.xlsx", {"S": [["path", "label"], ["a.png", 0, "x"]]}
    ))  # fmt: skip
    both = {"A": rows, "B": rows}
    fails("the sheets A and B could be meant; keep one", workbook(tmp_path / "c.xlsx", both))
    fails("no sheet's first row has names", workbook(tmp_path / "d.xlsx", {"A": [["a.png", 0]]}))


def test_a_formula_is_not_evaluated(tmp_path):
    manifest(tmp_path, "")
    path = workbook(tmp_path / "f.xlsx", {"S": [["path", "label"], ['="a"&".png"', 0]]})
    fails("line 2: no such file", path)  # no value was saved with it


def test_workbooks_that_unfold_to_too_much_or_are_none_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    bomb = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet1.xml", b" " * (spreadsheet._UNZIPPED + 1))
    fails("unfold to .* above the limit of .* save it as CSV", bomb)
    (tmp_path / "text.xlsx").write_text("path,label\n")
    fails("no .xlsx file, or damaged", tmp_path / "text.xlsx")
    with zipfile.ZipFile(tmp_path / "empty.xlsx", "w") as parts:
        parts.writestr("x", b"")
    fails("no .xlsx file, or damaged", tmp_path / "empty.xlsx")
    sound = workbook(tmp_path / "wide.xlsx", {"S": [["path", "label", *range(300)]]})
    fails("more than 256 columns", sound)


@pytest.mark.parametrize("entity", ["laughs", "outside"])
def test_entities_unfold_and_fetch_nothing(tmp_path, entity):
    manifest(tmp_path, "")
    (tmp_path / "secret").write_text("a.png")
    sound = workbook(tmp_path / "s.xlsx", {"S": [["path", "label"], ["XX", 0]]})
    steps = ['<!ENTITY e0 "ha">']
    for i in range(1, 12):
        before = f"&e{i - 1};" * 10
        steps.append(f'<!ENTITY e{i} "{before}">')
    outside = f'<!ENTITY e11 SYSTEM "file://{tmp_path}/secret">'
    head = f"<!DOCTYPE x [{''.join(steps) if entity == 'laughs' else outside}]>"
    bad = tmp_path / "bad.xlsx"
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(bad, "w") as new:
        for part in old.namelist():
            data = old.read(part).replace(b"XX", b"&e11;")
            if b"&e11;" in data:
                at = data.index(b"?>") + 2 if data.startswith(b"<?xml") else 0
                data = data[:at] + head.encode() + data[at:]
            new.writestr(part, data)
    fails("no .xlsx file, or damaged|no such file", bad)


def test_a_row_far_below_costs_nothing(tmp_path):
    """A file of some kilobytes may say that its next row is the last that a sheet can have, or one beyond."""
    manifest(tmp_path, "")
    sound = workbook(tmp_path / "s.xlsx", {"S": [["path", "label"], ["a.png", 0], ["b.png", 0]]})
    far = tmp_path / "far.xlsx"
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(far, "w") as new:
        for part in old.infolist():
            data = old.read(part)
            if part.filename.endswith("sheet1.xml"):
                data = data.replace(b'r="3"', b'r="2000000000"').replace(b'"A3"', b'"A2000000000"')
                data = data.replace(b'"B3"', b'"B2000000000"')
            new.writestr(part, data)
    assert list(listing(far).names) == ["a.png"]


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(spreadsheet, "optional", lambda name: None)
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    fails(r"pip install 'dia-anomaly\[tables\]', or save it as CSV", tmp_path / "list.xlsx")


# --- what we write ------------------------------------------------------------------------------------

hostile = st.text(st.sampled_from("=+-@\t\r\n ,;'\"a1＝"), max_size=8)


@given(hostile)
def test_no_cell_runs_wherever_a_program_splits_it_and_each_comes_back(text):
    cell = safe_cell(text)
    assert plain_cell(cell) == text
    assert plain_cell(text) == text or text != cell or text.startswith("'")
    if not spreadsheet._NUMBER.match(text):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
        for sign in ",;\t\r\n":  # separators of other programs
            assert not any(part.startswith(("=", "+", "-", "@", "＝")) for part in cell.split(sign)[1:])


@given(st.lists(st.lists(hostile, min_size=2, max_size=2), min_size=1, max_size=4))
def test_csv_comes_back_through_the_reader(rows):
    text = csv_text(rows, ends="\r\n")
    again = [[plain_cell(cell) for cell in row] for row in csv.reader(text.splitlines(keepends=True))]
    assert [row for row in again if row] == rows or any("\r" in c or "\n" in c for row in rows for c in row)


def test_the_mark_for_excel_stands_where_it_is_needed(tmp_path):
    assert marked("path\n") == "path\n"
    assert marked("pfad,größe\n")[0] == marked("path\n", ["ä"])[0] == "\ufeff"
    path = tmp_path / "x.csv"
    path.write_text(marked(csv_text([["path", "label"], ["ä", "=1"]])), encoding="utf-8")
    sheet = read_sheet(path, ("path",))
    assert (sheet.header, list(sheet.rows)) == (["path", "label"], [(2, ["ä", "'=1"])])


def scored(tmp_path, rows, **options):
    with ScoreFile(tmp_path / "s.csv", {"run": 1}, [r[0] for r in rows], 1, **options) as file:
        file.append(rows[file.start :])
        file.finish()
    return tmp_path / "s.csv"


def test_names_that_would_run_come_back_from_a_file_of_scores(tmp_path):
    names = ["=1+1.png", "'=x.png", "-5", "ä;=b.png", "plain.png"]
    out = scored(tmp_path, [(name, float(i), 0.5, True) for i, name in enumerate(names)])
    raw = out.read_text(encoding="utf-8")
    assert raw.startswith("\ufeffpath,")
    assert [line.split(",")[0] for line in raw.splitlines()[1:]] == [
        "'=1+1.png", "''=x.png", "-5", "ä;'=b.png", "plain.png",
    ]  # fmt: skip
    assert scores_by_name(out, names[::-1]).tolist() == [4, 3, 2, 1, 0]
    pd = pytest.importorskip("pandas")
    assert list(pd.read_csv(out).columns) == [*FIELDS]  # takes the mark for what it is


def interrupted(tmp_path, text: str) -> None:
    (tmp_path / ".s.csv.part").write_text(text, encoding="utf-8", newline="")
    (tmp_path / ".s.csv.part.json").write_text('\n{"run": 1}')


def test_a_file_begun_by_an_earlier_version_is_gone_on_with(tmp_path):
    """It has no mark, names as they are, and no further columns."""
    rows = [("=1.png", 1.0, 0.5, True), ("ä.png", 2.0, 0.25, True), ("c.png", 3.0, 0.125, False)]
    interrupted(tmp_path, "path,score,p_value,flagged\r\n=1.png,1.0,0.5,1\r\nä.png,2.0,0.25,1\r\nc.p")
    extra = {row[0]: {"age": "3"} for row in rows}
    out = scored(tmp_path, rows, resume=True, extra=extra)
    assert out.read_text(encoding="utf-8").splitlines() == [
        "path,score,p_value,flagged", "=1.png,1.0,0.5,1", "ä.png,2.0,0.25,1", "c.png,3.0,0.125,0",
    ]  # fmt: skip


def test_further_columns_are_copied_and_resumed(tmp_path):
    rows = [("a.png", 1.0, 0.5, True), ("b.png", 2.0, 0.25, False)]
    extra = {"a.png": {"age": "3", "=x": "=2"}, "b.png": {"age": "ä", "=x": ""}}
    whole = scored(tmp_path, rows, extra=extra).read_bytes()
    assert whole.decode().splitlines() == [
        "\ufeffpath,score,p_value,flagged,age,'=x", "a.png,1.0,0.5,1,3,'=2", "b.png,2.0,0.25,0,ä,",
    ]  # fmt: skip
    for cut in (0, 10, 41, 60, len(whole) - 3, len(whole)):
        (tmp_path / "s.csv").unlink()
        interrupted(tmp_path, "")
        (tmp_path / ".s.csv.part").write_bytes(whole[:cut])
        assert scored(tmp_path, rows, resume=True, extra=extra).read_bytes() == whole, cut
    interrupted(tmp_path, "path,score,p_value,flagged,other\r\n")
    (tmp_path / "s.csv").unlink()
    with pytest.raises(DataError, match="begun with other columns"):
        scored(tmp_path, rows, resume=True, extra=extra)


def test_score_copies_columns_that_have_no_name_of_ours(tmp_path, capsys):
    rows = ["path;label;Score;site;note"]
    for i in range(24):
        save(tmp_path / f"{i}.png", RNG.integers(0, 256, (12, 12), np.uint8))
        rows.append(f"{i}.png;0;9;Köln;{'=1+1' if i == 3 else ''}")
    path = tmp_path / "list.csv"
    path.write_bytes("\r\n".join([*rows, ";;;;", ""]).encode("cp1252"))
    run, out = str(tmp_path / "run"), tmp_path / "s.csv"
    main(["fit", str(path), "--method", "trivial:std", "--out", run])
    main(["score", run, str(path), "--out", str(out)])
    said = capsys.readouterr().err
    assert "copied from the manifest: site, note" in said
    assert "not copied, as dia writes columns of these names: Score" in said
    with out.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [*FIELDS, "site", "note"]
    assert {row["site"] for row in found} == {"Köln"}
    assert found[3]["note"] == "'=1+1"
