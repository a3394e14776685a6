"""The routes of the reading page behind a guard that only tells sessions apart."""

import io
import threading
import time
from typing import NamedTuple

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from dia.deploy.predictor import Verdict
from dia.serve.current import Current
from dia.serve.limits import Limits, Refused
from dia.serve.room import reading
from dia.serve.room.base import Room
from dia.serve.room.store import Marks
from dia.serve.sessions import Sessions


class Page(NamedTuple):
    """A room and how its routes are asked."""

    room: Room
    app: FastAPI

    def client(self, reader: str = "") -> TestClient:
        """A browser with a session of its own."""
        session = self.room.sessions.open(reader)
        return TestClient(self.app, headers={"X-Session": session.key}, raise_server_exceptions=False)


def page_of(room: Room) -> Page:
    app = FastAPI()

    @app.middleware("http")
    async def guard(request, call_next):
        request.state.session = room.sessions.find(request.headers.get("x-session", ""))
        return await call_next(request)

    @app.exception_handler(Refused)
    async def refused(_, error):
        return JSONResponse({"detail": error.line}, error.status)

    app.include_router(reading.routes(room))
    return Page(room, app)


def make_page(inferencer, run, store, **limits) -> Page:
    found = Limits(**limits)
    current = Current(found)
    current.use(inferencer, run)
    return page_of(Room(current, Sessions(), found, Marks(store), store.parent / "runs"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drop(client: TestClient, files: list[tuple[str, bytes]]) -> dict:
    """Drops files, reads them, and waits until all is done; returns the list."""
    id = client.post("/room/drops").json()["drop"]
    sent = client.post(f"/room/drops/{id}/files", files=[("files", one) for one in files])
    assert sent.status_code == 200, sent.text
    assert client.post(f"/room/drops/{id}/read").status_code == 202
    return listed(client)


def listed(client: TestClient) -> dict:
    """The list, once nothing is being read or scored."""
    late = time.monotonic() + 60
    while time.monotonic() < late:
        found = client.get("/room/list").json()
        if found["progress"]["done"]:
            return found
    raise AssertionError("the list is never done")


class Other:
    """A model of other scores, size and lineage."""

    def __init__(self, inferencer, size=24):
        self.inner, self.shape = inferencer, (size, size, 1)
        self.has_heatmaps = False

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def about(self):
        return self.inner.about() | {"lineage": "other", "model": "other"}

    def score(self, images, heatmaps=True):
        assert images.shape[1:] == self.shape
        return Verdict(images.mean((1, 2, 3)), np.full(len(images), 0.5), None)


class Held(Other):
    """Such a model, whose scoring waits to be let go."""

    def __init__(self, inferencer):
        super().__init__(inferencer, size=32)
        self.go, self.began = threading.Event(), threading.Event()

    def score(self, images, heatmaps=True):
        self.began.set()
        self.go.wait(60)
        return super().score(images, heatmaps)
