"""What the service says of itself in its OpenAPI, held against what it does, by schemathesis.

Left out of schemathesis' checks are `use_after_free`, `ensure_resource_availability` and
`object_level_authorization`, as nothing is created here, and `missing_required_header`, as none is required
by name; they pass vacuously. `positive_data_acceptance` is left out where files may be garbage: that a file
is a readable image is no matter of a schema. Everything else is on.
"""

import hashlib
import json
import os
import sys
import tempfile
from types import SimpleNamespace

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from live_service import app_of, live, picture, request, zipped
from PIL import Image
from schemathesis import checks

from dia.serve.limits import Limits

TOKEN = "3c9f0a-token-of-the-tests-5b1e"
GOOD = (
    picture(), picture((40, 24)), picture(mode="RGB"), picture(mode="RGB", kind="JPEG"),
    zipped(("a/b.png", picture()), ("notes.txt", b"hello")),
)  # fmt: skip
ANY = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
few, many = settings(max_examples=12, **ANY), settings(max_examples=400, **ANY)


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
    """A folder of its own for temporary files, empty again at the end."""
    folder = tmp_path_factory.mktemp("temporary")
    before, most = tempfile.tempdir, Image.MAX_IMAGE_PIXELS
    tempfile.tempdir = str(folder)
    yield
    tempfile.tempdir, Image.MAX_IMAGE_PIXELS = before, most
    assert not list(folder.iterdir())


class Unfitted:
    """As much of a model as its description needs, which must be there before any test runs."""

    detector = SimpleNamespace(method="dia+")
    t_max = 1000
    score = None


def described(token=None):
    app = app_of(Unfitted(), token=token)
    with TestClient(app, base_url="http://localhost") as client:
        return client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"}).json()


@pytest.fixture(scope="module")
def open_service(inferencer):
    with live(inferencer, Limits(), alone=False) as service:
        yield service


@pytest.fixture(scope="module")
def closed_service(inferencer):
    with pytest.MonkeyPatch.context() as patch:
        for many in ("OWN", "ALL"):  # so that no generated token goes unread
            patch.setattr(f"dia.serve.attempts.{many}", 10**9)
        with live(inferencer, Limits(), TOKEN, alone=False) as service:
            yield service


open_schema = schemathesis.openapi.from_dict(described())
closed_schema = schemathesis.openapi.from_dict(described(TOKEN))


def test_the_schemas_tested_are_those_that_are_served(open_service, closed_service):
    for service, schema in ((open_service, open_schema), (closed_service, closed_schema)):
        shown = f"Authorization: Bearer {TOKEN}".encode()
        status, body = service.ask(request("GET", "/openapi.json", b"", shown))
        assert status == 200
        assert json.loads(body) == schema.raw_schema


def with_files(case, made):
    """The case with other files: of each that was generated, what `made` makes of it."""
    if isinstance(case.body, dict) and isinstance(case.body.get("files"), list):
        files = case.body["files"]
        case.body["files"] = [made(repr(f).encode()) if isinstance(f, str | bytes) else f for f in files]
    return case


def looks_the_same_in_a_form(body):
    """Whether bytes do not show why it is invalid.

    A form says t=5 and t=[5] alike, and nothing of an empty list; files have no type; an empty field is one
    that was not filled in.
    """
    if not isinstance(body, dict):
        return False
    files = body.get("files")
    odd_files = isinstance(files, list) and not all(isinstance(f, str | bytes) for f in files)
    one = [body.get(name, 0) for name in ("heatmaps", "false_alarm_rate")]
    odd_ones = any(v in ("", [], [""]) or (isinstance(v, list) and len(v) == 1) for v in one)
    return odd_files or odd_ones or not isinstance(body.get("t", []), list)


def good(data):
    return GOOD[hashlib.sha256(data).digest()[0] % len(GOOD)]


def any_kind(data):
    """A file that can be read, its start, its end, garbage behind a right start, or what was generated."""
    whole, how = good(data), hashlib.sha256(data).digest()[1] % 5
    return (whole, whole[: len(whole) // 2], whole[-30:], whole[:16] + data, data)[how]


def checked(case, response, *left_out):
    """The answer is as the schema says it, and tells nothing of this machine."""
    if looks_the_same_in_a_form(case.body):
        left_out = (*left_out, checks.negative_data_rejection)
    case.validate_response(response, excluded_checks=list(left_out))
    for hidden in (TOKEN, tempfile.gettempdir(), os.getcwd(), sys.prefix, "Traceback"):
        assert hidden not in response.text
    return response


def ask(service, case, files, token=None):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return with_files(case, files).call(base_url=service.url, headers=headers)


@open_schema.parametrize()
@few
def test_what_the_schema_allows_is_answered_and_what_it_forbids_is_refused(open_service, case):
    checked(case, ask(open_service, case, good))


@open_schema.parametrize()
@few
def test_any_bytes_as_files_are_answered_as_the_schema_says(open_service, case):
    checked(case, ask(open_service, case, any_kind), checks.positive_data_acceptance)


@closed_schema.parametrize()
@few
def test_with_the_token_it_is_the_same_and_without_it_nothing(closed_service, case):
    response = ask(closed_service, case, good, TOKEN)
    checked(case, response)


@closed_schema.parametrize()
@few
def test_no_generated_token_opens_it(closed_service, case):
    response = ask(closed_service, case, good)
    assert response.status_code in (401, 200 if case.path == "/health" else 401, 405)
    checked(case, response)


@pytest.mark.slow
@open_schema.parametrize()
@many
def test_many_that_are_good(open_service, case):
    checked(case, ask(open_service, case, good))


@pytest.mark.slow
@open_schema.parametrize()
@many
def test_many_of_any_kind(open_service, case):
    checked(case, ask(open_service, case, any_kind), checks.positive_data_acceptance)


@pytest.mark.slow
@closed_schema.parametrize()
@many
def test_many_with_a_token(closed_service, case):
    checked(case, ask(closed_service, case, good, TOKEN))
