"""Spreadsheets: the rows of CSV and .xlsx files as people save them, and CSV that spreadsheets open right.

Knows cells; does not know what columns mean, nor images.

Reading: the encoding of a text file is that of its byte order mark (UTF-8, UTF-16), or else UTF-8, or else
Windows' cp1252. Columns are separated by a comma, a semicolon or a tab: by the one with which the first line
holds the columns that are needed, and by no other. Of an .xlsx the one sheet with those columns is read, and
of formulas the values that were saved with them.

Writing: a spreadsheet runs what begins with `=`, `+`, `-`, `@` or a few other signs. `safe_cell` puts `'`
before it, in every cell that this package writes, and `plain_cell` takes it away again.
"""

from __future__ import annotations

import csv
import datetime
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import DataError, first_line
from .limits import MissingLibrary, optional, refusing

SHEETS = (".csv", ".tsv", ".xlsx")  # what `read_sheet` reads
NO_PICTURES = (*SHEETS, ".npz")  # of strangers: a manifest may name other files of this machine
_TEXT_BYTES = 2**28  # of a text file
_UNZIPPED, _PARTS = 2**27, 1000  # bytes and number of an .xlsx file's parts
_COLUMNS, _ROWS = 256, 2**20  # of a sheet of an .xlsx file
_MARKS = {  # longest first: that of UTF-32 begins as that of UTF-16
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}  # fmt: skip
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_REMEDY = "save it as CSV in UTF-8"

# A cell begins at its start, and in programs that split at other signs than we do, after those
_SIGNS = "=+@＝＋－＠-"
_BEGINS = rf"(?:\A(?=%s'*[\t\r\n{_SIGNS}])|(?<=[,;\t\r\n])(?=%s'*[{_SIGNS}]))"
_FORMULA, _SAVED = re.compile(_BEGINS % ("", "")), re.compile(_BEGINS % ("'", "'") + "'")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?\Z")


class Sheet(NamedTuple):
    """The cells of a spreadsheet, without those around them.

    Args:
        header: the names of the columns, as they are written; each once, empty ones aside.
        rows: the line and the cells of each row that is not blank; as many cells as there are columns.
        said: how it was read, in words.
    """

    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    said: str


def safe_cell(value: Any) -> Any:
    """Makes a value such that no spreadsheet runs it as a formula; `plain_cell` undoes it.

    Numbers stay, also such as are text.

    Example:
        >>> [safe_cell(v) for v in ("=1+1.png", "-5", "a;=b", "'=x", "o'k.png", -1.5)]
        ["'=1+1.png", '-5', "a;'=b", "''=x", "o'k.png", -1.5]
    """
    return _FORMULA.sub("'", value) if isinstance(value, str) and not _NUMBER.match(value) else value


def plain_cell(text: str) -> str:
    """Returns the text of which `safe_cell` made a cell."""
    return _SAVED.sub("", text)


def csv_text(rows: Iterable[Sequence[Any]], *, ends: str = "\n", quoted: bool = False) -> str:
    """Writes rows as CSV, separated by commas, in which nothing is a formula.

    Args:
        rows: of cells.
        ends: the end of each line.
        quoted: whether all text is in quotes, not only where that is needed.

    Returns:
        The text; `marked` makes Excel read it right at the head of a file.
    """
    out = io.StringIO()
    writer = csv.writer(
        out, quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL, lineterminator=ends
    )
    writer.writerows([safe_cell(v) for v in row] for row in rows)
    return out.getvalue()


def marked(text: str, among: Iterable[str] = ()) -> str:
    """Puts a byte order mark before the text of a CSV file, if it is needed: Excel takes ASCII as it is.

    Args:
        text: the text of the file, or its beginning.
        among: what will follow.
    """
    return text if text.isascii() and all(map(str.isascii, among)) else f"\ufeff{text}"


def read_sheet(path: Path, needed: Sequence[str]) -> Sheet:
    """Opens a spreadsheet.

    Args:
        path: the file; .xlsx, or text.
        needed: columns that it has, in small letters.

    Returns:
        Its header, and its rows as they are read.

    Raises:
        DataError: no such columns, an encoding or separator that cannot be told, a damaged or oversized file;
            the rows raise it too.
    """
    if path.suffix.lower() == ".xlsx":
        return _of_workbook(path, needed)
    text, encoding = _decoded(path)
    (separator, skipped), header = _header(path, text, needed)
    said = f"{path}: read as {encoding}, columns separated by {_SEPARATORS[separator]}"
    reader = _reader(text, separator)
    lines = ((reader.line_num, row) for row in reader)
    return Sheet(header, _checked(path, header, lines, skipped), said)


def _holds(header: Sequence[str], needed: Sequence[str]) -> bool:
    """Returns whether a header has the columns that are needed, whatever their case."""
    return {*needed} <= {cell.strip().casefold() for cell in header}


def _decoded(path: Path) -> tuple[str, str]:
    """Returns the text of a file, and the name of its encoding."""
    try:
        if (size := path.stat().st_size) > _TEXT_BYTES:
            raise DataError(
                f"{path}: {size} bytes, above the limit of {_TEXT_BYTES >> 20} MiB for a CSV file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a readable CSV file ({first_line(error)})") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:  # no text, or UTF-16 that does not say in which order
        raise DataError(f"{path}: not a readable CSV file (it holds zero bytes); {_REMEDY}")
    tried = (("utf-8-sig" if encoding == "UTF-8" else encoding),) if encoding else ("utf-8", "cp1252")
    for name in filter(None, tried):
        try:
            return data.decode(name), encoding or {"utf-8": "UTF-8"}.get(name, "cp1252 (Windows)")
        except UnicodeDecodeError:
            continue
    what = encoding or "UTF-8 nor cp1252"
    raise DataError(f"{path}: not a readable CSV file (not {'' if encoding else 'in '}{what}); {_REMEDY}")


def _reader(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)


def _header(path: Path, text: str, needed: Sequence[str]) -> tuple[tuple[str, int], list[str]]:
    """Finds the separator, how many rows end with the header, and the header."""
    stated = re.match(r"sep=(.)\r?\n", text)  # Excel's own
    if stated and stated[1] not in _SEPARATORS:
        raise DataError(f"{path}, line 1: columns are not separated by comma, semicolon or tab")
    skipped = 2 if stated else 1
    found: dict[str, list[str]] = {}
    rows: list[list[str]]
    for separator in [stated[1]] if stated else _SEPARATORS:
        reader = _reader(text, separator)
        try:
            rows = [next(reader, []) for _ in range(skipped)]
        except csv.Error:
            continue
        if _holds(rows[-1], needed):
            found[separator] = [cell.strip() for cell in rows[-1]]
    if len(found) > 1:
        which = " or ".join(_SEPARATORS[s] for s in found)
        raise DataError(f"{path}, line {skipped}: columns may be separated by {which}; keep one of them")
    if not found:
        line = (text.splitlines() or [""])[min(skipped - 1, len(text.splitlines()) - 1)][:100]
        raise DataError(
            f"{path}, line {skipped}: the header must be names of columns, among "
            f"them {' and '.join(needed)}, separated by comma, semicolon or tab, not {line!r}"
        )
    (separator, header), *_ = found.items()
    return (separator, skipped), header


def _checked(
    path: Path, header: list[str], lines: Iterator[tuple[int, list[str]]], skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows below the header that are not blank, their cells stripped."""
    named = [name.casefold() for name in header if name]
    if twice := next((name for name in named if named.count(name) > 1), ""):
        raise DataError(f"{path}, line {skipped}: two columns are called {twice!r}; rename one")

    def rows() -> Iterator[tuple[int, list[str]]]:
        number = 0
        try:
            for number, (line, row) in enumerate(lines):
                cells = [cell.strip() for cell in row]
                if number < skipped or not any(cells):
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{path}, line {line}: the number of fields differs from the header's")
                yield line, cells
        except csv.Error as error:
            said = first_line(error)
            raise DataError(f"{path}: not a readable CSV file, below row {number + 1} ({said})") from error

    return rows()


# --- .xlsx ------------------------------------------------------------------------------------------------


def _of_workbook(path: Path, needed: Sequence[str]) -> Sheet:
    openpyxl = optional("openpyxl")
    if openpyxl is None:
        raise MissingLibrary(
            f"{path}: .xlsx is read by openpyxl; pip install 'dia-anomaly[tables]', or save it as CSV"
        )
    _check_unzipped(path)
    with refusing("no .xlsx file, or damaged; save it as CSV", "openpyxl"):
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    with closing(book):
        with refusing("no .xlsx file, or damaged; save it as CSV", "openpyxl"):
            found = {sheet.title: first for sheet in book.worksheets if (first := _first(sheet, needed))}
        if len(found) > 1:
            raise DataError(f"{path}: the sheets {' and '.join(found)} could be meant; keep one of them")
        if not found:
            raise DataError(
                f"{path}: no sheet's first row has names of columns, among them {' and '.join(needed)}"
            )
        ((title, (line, header)),) = found.items()
        width = len(header)
        with refusing("no .xlsx file, or damaged; save it as CSV", "openpyxl"):
            rows = list(_rows(book[title], width + 1))  # now, as the file is closed again
    if width > _COLUMNS:
        raise DataError(f"{path}: more than {_COLUMNS} columns; keep those that are needed")
    if over := next((number for number, cells in rows if len(cells) > width), 0):
        raise DataError(f"{path}, row {over}: a cell is filled to the right of the header's last")
    lines = ((number, cells + [""] * (width - len(cells))) for number, cells in rows if number >= line)
    return Sheet(header, _checked(path, header, lines, 1), f"{path}: read as .xlsx, sheet {title}")


def _check_unzipped(path: Path) -> None:
    """Refuses a file whose parts are more, or larger, than a list of images needs."""
    try:
        with zipfile.ZipFile(path) as parts:
            sizes = [part.file_size for part in parts.infolist()]  # what is read of each at most
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: no .xlsx file, or damaged ({first_line(error)}); save it as CSV") from error
    if len(sizes) > _PARTS or sum(sizes) > _UNZIPPED:
        raise DataError(
            f"{path}: {len(sizes)} parts that unfold to {sum(sizes)} bytes, above the limit of {_PARTS} "
            f"parts and {_UNZIPPED >> 20} MiB; save it as CSV"
        )


def _rows(sheet: Any, most: int) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells, at most `most` and none after the last that is filled, of rows."""
    sheet.reset_dimensions()  # a file's own word on its size is none
    for number, row in enumerate(sheet.iter_rows(max_col=most, max_row=_ROWS, values_only=True), 1):
        cells = [_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield number, cells


def _first(sheet: Any, needed: Sequence[str]) -> tuple[int, list[str]] | None:
    """Returns the number and the cells of a sheet's first row, if they name the columns needed."""
    number, cells = next(_rows(sheet, _COLUMNS + 1), (0, []))
    return (number, cells) if _holds(cells, needed) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return value.isoformat() if isinstance(value, datetime.date) else str(value).strip()
