"""`dia serve` as a process: it answers until a signal stops it, and says nothing that it should not."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from live_service import live, picture, post, read

from dia.core.errors import DataError
from dia.deploy.predictor import Inferencer
from dia.serve.limits import Limits
from dia.serve.server import serve

ZIP = b"Accept: application/zip"

TOKEN = "a token of thirty-two characters!".replace(" ", "-")


def test_a_process_serves_until_it_is_stopped(served_run, files):
    command = ["serve", str(served_run.run), "--port", "0", "--page", "false", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dia", *command, "--max-mb", "0.01"], text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": tempfile.gettempdir(), "DIA_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
        body = b"\r\n".join([
            b"--x", b'Content-Disposition: form-data; name="files"; filename="patient-0815.png"', b"",
            files[0].read_bytes(), b"--x--", b"",
        ])  # fmt: skip
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "multipart/form-data; boundary=x"}
        pieces = (body[i : i + 100] for i in range(0, len(body), 100))
        connection.request("POST", "/score", pieces, headers, encode_chunked=True)
        answer = json.loads(connection.getresponse().read())
        assert answer["images"][0]["name"] == "patient-0815.png"
        connection.request("POST", "/score", iter([body + bytes(10_000)]), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", f"/model?token={TOKEN}", headers=wrong)
            assert connection.getresponse().status == 401
        if Path("/proc/self/cmdline").exists():
            assert TOKEN not in Path(f"/proc/{process.pid}/cmdline").read_text()  # where --token would be
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out == ""
    assert "POST /score 200" in err
    assert "1 images" in err
    assert "stopped" in err
    for hidden in ("0815", TOKEN, "Traceback", str(served_run.run)):
        assert hidden not in err


def test_a_request_that_outlasts_the_service_is_told_so(served_run, monkeypatch, capfd):
    """503 in JSON and a line in the log, where it was 500 and a traceback; and without its rest."""
    monkeypatch.setattr("dia.serve.server._GRACE", 0.1)
    asked, done, answer = threading.Event(), threading.Event(), []
    real = Inferencer.score

    def score(self, *args, **options):
        if asked.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            assert done.wait(60)  # longer than the service waits
        return real(self, *args, **options)

    def ask(port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(post((b"files", b"a.png", picture())))
            asked.set()
            answer.append(read(connection))
        done.set()

    def say(line):
        if line.startswith("serving"):
            threading.Thread(target=ask, args=(int(line.split(":")[2].split("/")[0]),)).start()
            asked.wait()

    monkeypatch.setattr(Inferencer, "score", score)
    serve(served_run.run, port=0, page=False, device="cpu", say=say)
    ((status, body),) = answer
    assert (status, json.loads(body)) == (503, {"detail": "the service is stopping"})
    said = capfd.readouterr().err
    assert said.count("POST /score 503") == 1
    assert "Traceback" not in said


def test_without_a_temporary_folder_there_is_one_line(served_run, monkeypatch):
    def nowhere(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    with pytest.raises(
        DataError, match=r"^no temporary folder can be written \(No usable .*name one in TMPDIR$"
    ):
        serve(served_run.run, port=0, page=False)


def test_a_temporary_folder_that_is_gone_costs_no_more_than_the_request(
    inferencer, tmp_path, monkeypatch, caplog
):
    with live(inferencer, Limits(), alone=False) as service:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        status, body = service.ask(post((b"files", b"a.png", picture())))
        assert (status, "try again later" in json.loads(body)["detail"]) == (503, True)
        assert str(tmp_path).encode() not in body
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert service.ask(post((b"files", b"a.png", picture())))[0] == 200
    assert "no temporary folder can be written" in caplog.text


def test_a_zip_of_copies_needs_no_clock(inferencer, monkeypatch):
    """A clock that stands in 1970 is before the first time that a zip can hold."""
    ask = post((b"files", b"a.png", picture()), (b"t", b"1"), path="/dissolve", headers=(ZIP,))
    with live(inferencer, Limits(), alone=False) as service:
        answers = []
        for now in (time.time(), 0.0):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            answers.append(service.ask(ask))
    assert answers[0][0] == 200
    assert answers[0] == answers[1]


def test_sigterm_stops_it_too(served_run):
    said, before = [], [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def say(line):
        said.append(line)
        if line.startswith("serving"):  # the socket listens already: this is answered when all is there
            port = int(line.split(":")[2].split("/")[0])
            threading.Thread(target=stop, args=(port,)).start()

    def stop(port):
        try:
            socket.getaddrinfo("dia.invalid", 80)
        except PermissionError as refused:
            said.append(refused.strerror)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        said.append(connection.getresponse().status)
        os.kill(os.getpid(), signal.SIGTERM)

    serve(served_run.run, port=0, page=False, device="cpu", say=say)
    assert said[1:] == ["dia serve asks no other host", 200, "stopped"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
