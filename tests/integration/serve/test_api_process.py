"""`dia serve` as a process: it answers until a signal stops it, and says nothing that it should not."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from dia.serve.server import serve

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


def test_sigterm_stops_it_too(served_run):
    said, before = [], [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def say(line):
        said.append(line)
        if line.startswith("serving"):  # the socket listens already: this is answered when all is there
            port = int(line.split(":")[2].split("/")[0])
            threading.Thread(target=stop, args=(port,)).start()

    def stop(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        said.append(connection.getresponse().status)
        os.kill(os.getpid(), signal.SIGTERM)

    serve(served_run.run, port=0, page=False, device="cpu", say=say)
    assert said[1:] == [200, "stopped"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
