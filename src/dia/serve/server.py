"""`dia serve`: the reading room and the HTTP service on one address, until stopped.

Knows addresses, tokens and signals; the rest is `api.py`. FastAPI and uvicorn are imported only from here;
and torch in a thread, so that the page is there at once.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from .alone import alone
from .limits import Limits

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from .current import Served

_GRACE = 5  # seconds that open connections get when the server stops


def serve(
    run: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    token: str | None = None,
    allow_open: bool = False,
    hosts: Sequence[str] | None = None,
    page: bool = True,
    store: str = "marks.sqlite",
    runs: str = "runs",
    normals: str | None = None,
    data_root: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    say: Callable[[str], None] = print,
) -> None:
    """Serves a model folder, or none at first, until SIGINT or SIGTERM.

    Args:
        run: folder written by `dia fit`; None to begin with the page where models are trained.
        host: address or name to listen at.
        port: 0 for any that is free.
        device: of the models.
        token: that page and service ask for; None for none.
        allow_open: listen beyond this machine without a token.
        hosts: further names of the service, besides those of loopback and `host`.
        page: whether to serve the reading room, too.
        store: SQLite file of the marks.
        runs: folder in which models are written that are trained on the page.
        normals: path or known name of a data set whose normals are shown as neighbours.
        data_root: where known data sets lie, and what may be named for a training.
        limits: of a request, and of all together.
        say: prints a line for the user.

    Raises:
        DataError: no model, the extra `serve` is not installed, an address that cannot be had, or an open
            one that was not allowed.
    """
    try:
        from .api import add_parts, build_app
        from .current import Current
        from .middleware import LOOPBACK
        from .room.base import Room
        from .room.store import Marks
        from .sessions import Sessions
    except ImportError as error:
        raise DataError(f"dia serve needs {error.name}: pip install 'dia-anomaly[serve]'") from error
    if token is not None and (not token or not token.isprintable() or " " in token):
        raise DataError("the token must be printable characters without spaces; try `openssl rand -hex 32`")
    if not 0 <= port < 2**16:
        raise DataError(f"--port must lie in 0–65535, not {port}")
    if run is None and not page:
        raise DataError("without the page there must be a model: dia serve RUN --page false")
    if run is not None and not Path(run).is_dir():
        raise DataError(f"{run}: there is no such model; `dia fit` makes one")
    listening = _listen(host, port)
    _check_temporary()
    with listening, alone(listening.getsockname()[1]):
        local = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
        if not (local or token or allow_open):
            raise DataError(
                f"--host {host} can be reached from other machines; set DIA_TOKEN, or say --allow_open"
            )
        names = [*LOOPBACK, _bracketed(host), *(hosts or [])] if local or hosts else None
        current = Current(limits, device=device, data_root=data_root)
        room = None
        if page:
            root = Path(data_root) if data_root else None
            if root and not root.is_dir():
                raise DataError(f"--data-root {data_root}: no such folder; name one, or leave it out")
            room = Room(current, Sessions(), limits, Marks(Path(store)), Path(runs), root)
        app = build_app(current, token, hosts=names, room=room, parts=False)
        server, start = make_server(app, behind_proxy=bool(hosts)), time.perf_counter()
        loading = current.begin(
            None if run is None else Path(run), normals=normals,
            before=lambda: add_parts(app, room) if room else None,
        )  # fmt: skip
        if page:
            loading.add_done_callback(lambda done: _loaded(done, server, say, time.perf_counter() - start))
        else:
            loading.result()  # nobody would look at a page meanwhile
        at = f"http://{_bracketed(host)}:{listening.getsockname()[1]}{'' if page else '/docs'}"
        say(
            f"serving {Path(run).name} at {at}; Ctrl-C stops"
            if run
            else f"train a model at {at}/train; Ctrl-C stops"
        )
        with _logged(), _stopped_quietly():
            server.run(sockets=[listening])
        loading.result()  # waits: what is half imported cannot be left
    say("stopped")


def _loaded(
    done: Future[Served | None], server: uvicorn.Server, say: Callable[[str], None], took: float
) -> None:
    """Tells that the first model is there; or stops, as there is none."""
    if done.exception():
        server.should_exit = True
    elif served := done.result():
        say(f"{served.inferencer.detector.method} is ready after {took:.1f} s")
        if why := served.inferencer.why_no_normals:
            say(f"no neighbours are shown: {why}")


def make_server(app: FastAPI, *, behind_proxy: bool = False, **options: Any) -> uvicorn.Server:
    """Returns the server that `dia serve` runs; it logs no requests, whose addresses may be private.

    Args:
        app: the application.
        behind_proxy: whether a proxy on this machine says, in X-Forwarded-For and -Proto, who asks and how.
        **options: of `Connections`.
    """
    import uvicorn

    from .attempts import Bounded
    from .connections import HEAD, Connections, most_connections

    options.setdefault("most", most_connections())
    config = uvicorn.Config(
        app, http=Connections(**options).protocol,  # type: ignore[arg-type]  # called as a class is
        ws="none", log_level="warning", access_log=False, server_header=False, loop="asyncio",
        proxy_headers=behind_proxy, timeout_keep_alive=int(HEAD), timeout_graceful_shutdown=_GRACE,
    )  # fmt: skip
    for name in ("uvicorn.error", "asyncio"):  # which write a line for each request that is malformed
        log = logging.getLogger(name)
        if not any(isinstance(f, Bounded) for f in log.filters):
            log.addFilter(Bounded())
    return uvicorn.Server(config)


def _check_temporary() -> None:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"no temporary folder can be written ({why}); name one in TMPDIR") from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"--host {host} --port {port}: {why}; choose another") from error


def _bracketed(host: str) -> str:
    """Returns a host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


@contextmanager
def _logged() -> Iterator[None]:
    """One line for each request on stderr; names of files are in none."""
    from .attempts import Bounded

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(Bounded())
    log = logging.getLogger("dia.serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


@contextmanager
def _stopped_quietly() -> Iterator[None]:
    """Ignores the signal that stopped the server, which uvicorn sends once more when it has stopped."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda *_: None) for s in signals]
    try:
        yield
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
