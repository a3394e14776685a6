"""The service on a real socket of this machine, in a thread, served as `dia serve` does it."""

import io
import json
import socket
import threading
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from dia.serve.api import build_app
from dia.serve.current import Current
from dia.serve.limits import Limits
from dia.serve.server import make_server
from dia.serve.sessions import Sessions

MULTIPART = b"Content-Type: multipart/form-data"
KIND = MULTIPART + b"; boundary=x"


class Live:
    """A running service, spoken to in bytes."""

    def __init__(self, app, running, port):
        self.app, self.running, self.port = app, running, port

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def connect(self, sent=b""):
        """A connection over which this was sent; reading gives up after a minute, which is a failure."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        with suppress(BrokenPipeError, ConnectionResetError):  # who is refused may be cut off while it sends
            connection.sendall(sent)
        return connection

    def ask(self, sent):
        """(status, body as bytes) of the answer to a whole request."""
        with self.connect(sent) as connection:
            return read(connection)

    def health(self):
        status, body = self.ask(request("GET", "/health"))
        assert status == 200
        return json.loads(body)

    def until(self, **facts):
        """Waits until `/health` says so."""
        for _ in range(5000):
            said = self.health()
            if all(said[key] == value for key, value in facts.items()):
                return said
        raise AssertionError(f"{said}, never {facts}")


def app_of(inferencer, limits=Limits(), token=None, *, store=None, **options):  # noqa: B008 - frozen
    """The application of a model; None for none.

    Args:
        store: the file of the reading room's marks; None for the service alone.
    """
    current, room = Current(limits), None
    if inferencer is not None:
        current.use(inferencer, Path("run"))
    if store is not None:
        from dia.serve.room.base import Room
        from dia.serve.room.store import Marks

        room = Room(current, Sessions(), limits, Marks(store), store.parent / "runs")
    app = build_app(current, token, room=room, **options)
    app.state.current, app.state.room = current, room
    return app


@contextmanager
def live(
    inferencer, limits, token=None, *, send_buffer=None, alone=True, behind_proxy=False, held=None, **options
):
    """A `Live`, with a check at its end that nothing is left of it.

    Args:
        send_buffer: of the kernel, in bytes.
        alone: nothing else starts threads meanwhile, so that none may be left.
        behind_proxy: as with `--allowed-hosts`.
        held: options of the connections.
        **options: of `app_of`.
    """
    before = set(threading.enumerate())
    app = app_of(inferencer, limits, token, **options)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        running = make_server(app, behind_proxy=behind_proxy, **held or {})
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            one = Live(app, running, listening.getsockname()[1])
            yield one
            one.until(active_requests=0, waiting_images=0)
        finally:
            running.should_exit = True
            thread.join()
        for left in set(threading.enumerate()) - before if alone else ():
            left.join(60)
            assert not left.is_alive(), left


def request(method, path, body=b"", *headers, host=b"127.0.0.1", length=True):
    """A request as bytes; the connection ends after its answer."""
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: " + host, b"Connection: close", *headers]
    if length and (body or method == "POST"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def post(*parts, path="/score", headers=()):
    """A request with a form: (name, data) or (name, file name, data), all bytes."""
    return request("POST", path, form(*parts), KIND, *headers)


def form(*parts):
    """A body with the boundary `x`."""
    out = b""
    for name, *file_name, data in parts:
        shown = b"".join(b'; filename="' + f + b'"' for f in file_name)
        out += (
            b'--x\r\nContent-Disposition: form-data; name="'
            + name
            + b'"'
            + shown
            + b"\r\n\r\n"
            + data
            + b"\r\n"
        )
    return out + b"--x--\r\n"


def read(connection):
    """(status, body) of an answer, to the end of the connection; (None, b"") where there is none."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionError:
        pass  # ended while we were still sending: what came before counts
    while found.startswith(b"HTTP/1.1 100 "):
        found = found.partition(b"\r\n\r\n")[2]
    head, _, body = found.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else None), body


def picture(size=(8, 8), mode="L", kind="PNG"):
    """A file's bytes."""
    buffer = io.BytesIO()
    Image.new(mode, size, 90 if mode == "L" else (90, 20, 200)).save(buffer, kind)
    return buffer.getvalue()


def zipped(*members):
    """A zip's bytes, of (name, data)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data)
    return buffer.getvalue()
