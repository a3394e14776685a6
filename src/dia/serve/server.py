"""`dia serve`: the review page and the HTTP service on one address, until stopped.

Knows addresses, tokens and signals; the rest is `review/page.py` and `api.py`. FastAPI, uvicorn and gradio
are imported only from here.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import DataError
from ..deploy.predictor import Inferencer
from .alone import alone
from .limits import Limits

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_IDLE = 20  # seconds after an answer in which a connection may ask again
_GRACE = 5  # seconds that open connections get when the server stops


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    token: str | None = None,
    allow_open: bool = False,
    hosts: Sequence[str] | None = None,
    page: bool = True,
    store: str = "reviews.sqlite",
    normals: str | None = None,
    data_root: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    say: Callable[[str], None] = print,
) -> None:
    """Serves a model folder until SIGINT or SIGTERM.

    Args:
        run: folder written by `dia fit`.
        host: address or name to listen at.
        port: 0 for any that is free.
        device: of the model.
        token: that page and service ask for; None for none.
        allow_open: listen beyond this machine without a token.
        hosts: further names of the service, besides those of loopback and `host`.
        page: whether to serve the review page, too.
        store: SQLite file of the reviews.
        normals: path or known name of a data set whose normals are shown as neighbours.
        data_root: where known data sets lie.
        limits: of a request, and of all together.
        say: prints a line for the user.

    Raises:
        DataError: no model, the extra `serve` is not installed, an address that cannot be had, or an open
            one that was not allowed.
    """
    try:
        from .api import build_app
        from .middleware import LOOPBACK
    except ImportError as error:
        raise DataError(f"dia serve needs {error.name}: pip install 'dia-anomaly[serve]'") from error
    if token is not None and (not token or not token.isprintable() or " " in token):
        raise DataError("the token must be printable characters without spaces; try `openssl rand -hex 32`")
    if not 0 <= port < 2**16:
        raise DataError(f"--port must lie in 0–65535, not {port}")
    listening = _listen(host, port)
    _check_temporary()
    with listening, alone(listening.getsockname()[1]):
        local = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
        if not (local or token or allow_open):
            raise DataError(
                f"--host {host} can be reached from other machines; set DIA_TOKEN, or say --allow_open"
            )
        names = [*LOOPBACK, _bracketed(host), *(hosts or [])] if local or hosts else None
        inferencer = Inferencer(run, device=device, normals=normals, data_root=data_root)
        app = build_app(inferencer, limits, token, hosts=names)
        if page:
            from .review.page import mount

            app = mount(app, inferencer, store=Path(store), token=token)
        inferencer.score(np.zeros((1, *inferencer.shape), np.uint8))  # the first pass is slow
        if inferencer.why_no_normals:
            say(f"no neighbours are shown: {inferencer.why_no_normals}")
        at = f"http://{_bracketed(host)}:{listening.getsockname()[1]}"
        say(f"serving {inferencer.detector.method} at {at}{'' if page else '/docs'}; Ctrl-C stops")
        with _logged(), _stopped_quietly():
            make_server(app, behind_proxy=bool(hosts)).run(sockets=[listening])
    say("stopped")


def make_server(app: FastAPI, *, behind_proxy: bool = False) -> uvicorn.Server:
    """Returns the server that `dia serve` runs; it logs no requests, whose addresses may be private.

    uvicorn closes a connection that asks nothing for some seconds after an answer. Clients that send the head
    of a request slowly, or do not take their answer, are for a proxy before the service to stop.

    Args:
        app: the application.
        behind_proxy: whether a proxy on this machine says, in X-Forwarded-For, who asks.
    """
    import uvicorn

    config = uvicorn.Config(
        app, http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
        loop="asyncio", proxy_headers=behind_proxy,
        timeout_keep_alive=_IDLE, timeout_graceful_shutdown=_GRACE,
    )  # fmt: skip
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
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
