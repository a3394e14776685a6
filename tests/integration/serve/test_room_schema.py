"""What the page's routes say of themselves in their OpenAPI, held against what they do, by schemathesis.

Cases, drops and runs of the addresses are made up, so that most answers are that there is none; what is there
is asked by the tests of each part.
"""

import os
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from live_service import app_of, live
from schemathesis import checks

from dia.serve.limits import Limits

HELD = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance,
]  # fmt: skip
few = settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def described():
    with tempfile.TemporaryDirectory() as folder:
        app = app_of(None, store=Path(folder, "marks.sqlite"))
        with TestClient(app, base_url="http://localhost") as client:
            found = client.get("/openapi.json").json()
    found["paths"] = {path: said for path, said in found["paths"].items() if path.startswith("/room/")}
    return found


schema = schemathesis.openapi.from_dict(described())


@pytest.fixture(scope="module")
def site(inferencer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    with live(inferencer, Limits(), alone=False, store=folder / "marks.sqlite") as one:
        with httpx.Client(base_url=one.url, timeout=60, trust_env=False) as reader:
            reader.get("/")
            cookie = "; ".join(f"{k}={v}" for k, v in reader.cookies.items())
        one.headers = {"Cookie": cookie, "Origin": one.url}
        one.places = (str(folder), os.getcwd(), sys.prefix, "Traceback")
        yield one


@schema.parametrize()
@few
def test_the_page_s_routes_answer_as_they_say(site, case):
    response = case.call(base_url=site.url, headers=site.headers)
    case.validate_response(response, checks=HELD)
    for hidden in site.places:
        assert hidden not in response.text
