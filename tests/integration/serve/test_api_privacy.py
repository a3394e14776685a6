"""What stays with the service and what stays outside: the token, and the names that clients give to files.

The names are followed by an audit hook, which sees whatever this process opens, lists, makes or starts.
"""

import logging
import os
import re
import sys
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_service import KIND, form, live, picture, post, request
from PIL import Image

import dia
from dia.serve.limits import Limits

TOKEN = "b81f77-token-of-the-tests-0c2d"
MARK = "zqjxkvwqzj"  # in every name; longer than a suffix may be


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    folder, before, most = tmp_path_factory.mktemp("temporary"), tempfile.tempdir, Image.MAX_IMAGE_PIXELS
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir, Image.MAX_IMAGE_PIXELS = before, most
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def service(temporary, inferencer):
    with live(inferencer, Limits(), alone=False) as service:
        service.ask(post((b"files", b"a.png", picture())))  # what is imported late is there
        yield service


# --- files ------------------------------------------------------------------------------------------------


WATCHED = re.compile(
    r"open|os\.(?!putenv|unsetenv)|(shutil|tempfile|glob|pathlib|subprocess)\.|ctypes\.dlopen"
)
NUMBERED = re.compile(r"\d{5}(\.nii|\.dcm|\.dicom)?(\.[a-z0-9]{1,8})?|member")
EVENTS: list[list[tuple[str, str]]] = []  # lists that are written to now: a hook stays for ever


def hook(event, args):
    if EVENTS and WATCHED.match(event):
        for given in args[:2] if "rename" in event or "link" in event else args[:1]:
            if isinstance(given, str | bytes | os.PathLike):
                EVENTS[-1].append((event, os.fsdecode(given)))


sys.addaudithook(hook)


@contextmanager
def watched():
    """The (event, path) of everything that touches the file system."""
    found: list[tuple[str, str]] = []
    EVENTS.append(found)
    try:
        yield found
    finally:
        EVENTS.remove(found)


def checked(found, temporary, served_run):
    """What was touched are the service's own places, and no name of a client's."""
    places = [temporary, served_run.run, Path(dia.__file__).parent, sys.prefix, sys.base_prefix]
    for event, path in found:
        assert MARK not in path, (event, path)
        assert not event.startswith("subprocess"), (event, path)
        whole = os.path.realpath(path)
        inside = any(whole.startswith(os.path.realpath(p)) for p in places)
        deleted = event in ("os.remove", "os.rmdir") and NUMBERED.fullmatch(path)  # within an open folder
        # where a module is sought
        imported = event == "os.listdir" and whole in map(os.path.realpath, sys.path)
        assert inside or deleted or imported, (event, path, found)


def zip_of(names, links=()):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in dict.fromkeys(names):
            packed.writestr(zipfile.ZipInfo(name), picture())
        for name, target in links:
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, 0o120777 << 16  # of Unix, a symbolic link
            packed.writestr(link, target)
    return buffer.getvalue()


PIECES = (
    "..", "/", "\\", "//", "C:", "\\\\?\\", "~", "$HOME", "%2e%2e%2f", "%00", "\0", "\n", "\r", ";", "|",
    "`id`", "CON", "nul", "AUX.png", ".", " ", "é", "\u202e", "\uff0e\uff0e", "\ufffd", "x" * 300, ".png",
    ".nii.gz", ".dcm", ".csv", ".npz", ".tif", "/etc/", "/proc/self/environ", "/dev/stdin", "file://",
)  # fmt: skip
NAMES = st.lists(st.sampled_from(PIECES), max_size=6).flatmap(
    lambda parts: st.integers(0, len(parts)).map(lambda at: "".join([*parts[:at], MARK, *parts[at:]]))
)


@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, max_size=4), NAMES)
@example([f"/etc/{MARK}.png", f"..\\..\\{MARK}.png"], [f"../../../tmp/{MARK}.png", f"/{MARK}.png"], MARK)
@example([MARK * 40 + ".png"], [MARK * 40 + ".png", f"{MARK}\0.png"], f"/etc/{MARK}")
@settings(max_examples=30)
def test_no_name_of_a_client_reaches_the_file_system(service, temporary, served_run, names, members, target):
    """File names, names in zips, targets of links in zips: never opened, made, moved, listed or run."""
    packed = zip_of(members, [(f"{MARK}.png", target), (f"../{MARK}.dcm", f"/etc/{MARK}")])
    parts = [(b"files", header(name), picture()) for name in names]
    body = form(*parts, (b"files", header(target), packed))
    with watched() as found:
        status, answer = service.ask(request("POST", "/score", body, KIND))
    assert status in (200, 422), answer
    assert [path for _, path in found if path.startswith(str(temporary))]  # the hook sees
    checked(found, temporary, served_run)


def header(name):
    """A file name as a header's value can have it."""
    return re.sub(rb'[\r\n"\0]', b"_", name.encode())[:3000]


OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" SizeZ="2" SizeC="1" SizeT="1">
<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="%s">urn:uuid:2</UUID></TiffData>
<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="../%s">urn:uuid:3</UUID></TiffData>
</Pixels></Image></OME>"""


def deep_tiff():
    """A 16-bit TIFF that says that its planes lie in other files."""
    tifffile = pytest.importorskip("tifffile")
    import numpy as np

    buffer = BytesIO()
    said = OME % (f"/etc/{MARK}.tif", f"{MARK}.tif")
    tifffile.imwrite(buffer, np.arange(64, dtype=np.uint16).reshape(8, 8), description=said, metadata=None)
    return buffer.getvalue()


def dicomdir():
    """A DICOM directory that names files."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    record, whole, meta = pydicom.Dataset(), pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    record.ReferencedFileID = ["..", MARK]
    record.DirectoryRecordType = "IMAGE"
    whole.DirectoryRecordSequence = [record]
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.file_meta = meta
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, whole, enforce_file_format=True)
    return buffer.getvalue()


EPS = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/etc/{MARK}) run\n%%EOF\n".encode()
SVG = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/{MARK}">]><svg>&e;</svg>'.encode()


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tif", deep_tiff), ("a.dcm", dicomdir), ("a.png", lambda: EPS), ("a.tif", lambda: EPS),
        ("a.gif", lambda: SVG),
        ("a.csv", lambda: f"path,label\n/etc/{MARK},0\n".encode()),
    ],
)  # fmt: skip
def test_no_name_in_a_file_reaches_the_file_system(service, temporary, served_run, name, make):
    """Nor is a program started for a kind of file that Pillow would start one for."""
    with watched() as found:
        status, answer = service.ask(request("POST", "/score", form((b"files", name.encode(), make())), KIND))
    assert status in (200, 422), answer
    assert MARK.encode() not in answer
    checked(found, temporary, served_run)


@pytest.mark.parametrize("page", ["/static/", "/", "/docs/", "/score/"])
@pytest.mark.parametrize(
    "path",
    [
        "../../../../../../../../etc/MARK", "..%2f..%2f..%2f..%2fetc%2fMARK", "%2e%2e/%2e%2e/MARK",
        "/etc/MARK", "..\\..\\MARK", "C:%5cMARK", "MARK%00.css", "MARK" * 400, "file:MARK",
        "%c0%ae%c0%ae/MARK", "favicon.png/../MARK",
    ],
)  # fmt: skip
def test_no_path_of_an_address_is_opened(service, temporary, served_run, page, path):
    with watched() as found:
        status, answer = service.ask(request("GET", page + path.replace("MARK", MARK)))
    assert status in (404, 400), answer
    checked(found, temporary, served_run)


# --- the token --------------------------------------------------------------------------------------------


def attempts():
    """Requests with the token at right and wrong places, and with others like it."""
    good = f"Authorization: Bearer {TOKEN}".encode()
    body, large = form((b"files", b"a.png", picture())), b"Content-Length: 999999999999"
    yield request("POST", "/score", body, KIND, good)
    yield request("POST", "/score", body[:-9], KIND, good)
    yield request("POST", "/score", form((b"files", b"a.png", b"x")), KIND, good)
    yield request("POST", "/score", b"", KIND, good, large, length=False)
    yield request("POST", f"/score?token={TOKEN}", body, KIND, good)
    yield request("GET", "/model", b"", good)
    yield request("GET", "/model", b"", good + b"x")
    yield request("GET", "/model", b"", f"Authorization: Basic {TOKEN}".encode())
    yield request("GET", "/model", b"", f"Cookie: access-token={TOKEN}".encode())
    yield request("GET", f"/model?token={TOKEN}")
    yield request("GET", f"/health?access_token={TOKEN}")
    yield request("GET", f"/{TOKEN}")
    yield request("GET", f"/static/{TOKEN}")
    yield request("GET", "/health", b"", host=TOKEN.encode())
    yield request("GET", "/docs", b"", good)
    yield request("GET", "/openapi.json", b"", good)
    yield f"GET /health HTTP/1.1\r\nX {TOKEN}\r\n\r\n".encode()
    yield f"{TOKEN}\r\n\r\n".encode()


def test_the_token_is_in_no_answer_and_no_log(temporary, inferencer, caplog, monkeypatch):
    """At the most talkative level of every logger there is, and when the service fails."""
    with live(inferencer, Limits(), TOKEN, alone=False) as service, ExitStack() as undo:
        service.health()  # started: at the first level it logs what it is asked, which `dia serve` never sets
        for name in {"", "dia.serve", *logging.root.manager.loggerDict} - {"uvicorn.access"}:  # which is off
            log = logging.getLogger(name)
            undo.callback(log.setLevel, log.level)
            undo.callback(log.removeHandler, caplog.handler)
            log.setLevel(1)
            log.addHandler(caplog.handler)
        answers = [service.ask(sent)[1].decode() for sent in attempts()]

        def fail(*_, **__):
            raise RuntimeError("a failure")

        with monkeypatch.context() as broken:
            broken.setattr(inferencer, "read", fail)
            answers += [service.ask(sent)[1].decode() for sent in attempts()]
    assert sum("an error of the service" in answer for answer in answers) >= 2  # those with files
    assert "RuntimeError" in caplog.text
    assert "a failure" not in caplog.text  # an error's own words may be anything that was sent
    assert TOKEN not in caplog.text
    for answer in answers:
        assert TOKEN not in answer
