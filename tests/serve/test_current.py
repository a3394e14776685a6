"""The model in use: loaded in the background, exchanged without loss, absent in one line."""

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from live_service import live, picture, post, request

from dia.core.errors import DataError
from dia.serve.batching import Batcher
from dia.serve.current import Current
from dia.serve.limits import Deadline, Limits, Refused


class Counting:
    """As much of a model as a batcher needs, which answers with its own number."""

    def __init__(self, number, verdict):
        self.number, self.verdict = number, verdict

    def score(self, images, heatmaps):
        return self.verdict(np.full(len(images), float(self.number)), np.full(len(images), 0.5), None)


@pytest.fixture
def verdict():
    from dia.deploy.predictor import Verdict

    return Verdict


IMAGES = np.zeros((3, 4, 4, 1), np.uint8)


def test_who_comes_after_the_exchange_is_scored_all_the_same(verdict):
    """By the model that the request began with, again and again, with no thread left behind."""
    before = set(threading.enumerate())
    batcher = Batcher(Counting(7, verdict).score, Limits())
    batcher.finish()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    for _ in range(3):
        assert batcher.alive
        assert batcher.score(IMAGES, False, Deadline(60)).scores.tolist() == [7, 7, 7]
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
            assert not thread.is_alive()
    batcher.close()
    with pytest.raises(Refused, match="stopping"):
        batcher.score(IMAGES, False, Deadline(60))


def test_no_request_is_lost_while_models_are_exchanged(verdict):
    """Each gets the answer of the model that it got, whatever comes in between."""
    current = Current(Limits(batch_wait_ms=0))
    current.use(Counting(1, verdict), Path("1"))
    wrong, done = [], threading.Event()

    def ask():
        while not done.is_set():
            served = current.get()
            scores = served.batcher.score(IMAGES, False, Deadline(60)).scores
            if scores.tolist() != [served.number] * 3 or served.inferencer.number != served.number:
                wrong.append((served.number, scores))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(2, 60):
        assert current.use(Counting(number, verdict), Path("x")).number == number
    done.set()
    for thread in threads:
        thread.join()
    current.close()
    assert not wrong


def test_without_a_model_there_is_one_line_and_the_service_is_well(tmp_path):
    with live(None, Limits(), alone=False, store=tmp_path / "m.sqlite") as service:
        for sent in (post((b"files", b"a.png", picture())), request("GET", "/model")):
            status, body = service.ask(sent)
            assert (status, "dia serve RUN" in json.loads(body)["detail"]) == (409, True)
        assert service.health()["model_loaded"] is False
        status, _ = service.ask(request("GET", "/"))
        assert status == 303  # to where one is trained


def test_requests_wait_for_the_model_that_is_being_loaded(inferencer, monkeypatch):
    """The health does not; and what comes first is done first."""
    go, order = threading.Event(), []
    with live(None, Limits(), alone=False) as service:
        current = service.app.state.current
        monkeypatch.setattr(
            current,
            "serve",
            lambda run, normals: (order.append("load"), go.wait(60), current.use(inferencer, run))[2],
        )
        loading = current.begin(Path("run"), before=lambda: order.append("before"))
        asked = []
        thread = threading.Thread(
            target=lambda: asked.append(service.ask(post((b"files", b"a.png", picture()))))
        )
        thread.start()
        while service.health()["active_requests"] == 0:
            pass
        assert service.health()["model_loaded"] is False
        with pytest.raises(Refused, match="loaded"):
            current.get()
        go.set()
        thread.join()
        assert asked[0][0] == 200
        assert loading.result().number == 1
    assert order == ["before", "load"]


def test_what_cannot_be_loaded_leaves_the_model_that_is_there(verdict, tmp_path):
    current = Current(Limits(), device="cpu")
    first = current.use(Counting(1, verdict), Path("1"))
    with pytest.raises(DataError):
        current.serve(tmp_path)
    assert current.get() is first
    loading = current.begin(tmp_path)
    with pytest.raises(DataError):
        loading.result(60)
    asyncio.run(current.ready())
    assert current.get() is first
    current.close()
