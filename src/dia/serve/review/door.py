"""What of gradio may be asked: the addresses and files that the page uses, and nothing else that it offers.

gradio fetches addresses that a client names, hands out files, and tells where they lie. So its other routes
are closed, a file is known only by the name that its upload was answered with, and bodies have limits. An
ASGI middleware around the page. Knows gradio's addresses and messages; knows no models or images.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..attempts import Attempts
from ..limits import Refused
from ..middleware import Body, client_of

LOGIN, UPLOAD = "/login", "/gradio_api/upload"
_EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
_GET = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout)|/(assets|static)/[\w./-]{1,200}"
    r"|/gradio_api/(queue/data|upload_progress)",
    re.ASCII,
)
_MOST_EVENT = 1_000_000  # bytes of an event, or of a login
MOST_UPLOAD = 4_000_000_000  # bytes of what is dropped at once
_UPLOADS = "uploads/"  # stands for the folder of uploads in messages
_UPLOADED = re.compile(r"uploads/[0-9a-f]{64}/(?!\.\.?$)[^/\\\0]+")


class Door:
    """The middleware.

    Args:
        app: gradio's.
        uploads: the folder where it keeps uploads.
        attempts: counts wrong passwords; None where there is no password.
    """

    def __init__(self, app: ASGIApp, uploads: Path, attempts: Attempts | None):
        self.app, self.uploads, self.attempts = app, f"{uploads}/", attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what the page needs.

        Raises:
            Refused: it is something else.
        """
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, headers = scope["path"], Headers(scope=scope)
        if scope["method"] in ("GET", "HEAD") and _GET.fullmatch(path):
            return await self.app(scope, receive, send)
        if scope["method"] != "POST" or path not in (LOGIN, UPLOAD, *_EVENTS):
            raise Refused(404, "there is nothing at this address")
        if path == UPLOAD:
            return await self._upload(scope, Body(receive, headers, MOST_UPLOAD), send)
        body = await _whole(Body(receive, headers, _MOST_EVENT))
        if path == LOGIN:
            return await self._login(scope, _replayed(body, receive), send)
        await self.app(scope, _replayed(self._with_files(body), receive), send)

    async def _upload(self, scope: Scope, body: Body, send: Send) -> None:
        """Lets the answer name files without the folder where they lie."""
        plain = [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"]

        async def shown(message: Message) -> None:
            if body.refused:
                return
            if message["type"] == "http.response.start":
                kept = [(k, v) for k, v in message["headers"] if k.lower() != b"content-length"]
                message = {**message, "headers": kept}
            elif message["type"] == "http.response.body":  # short, and so in one piece
                said = message.get("body", b"").replace(self.uploads.encode(), _UPLOADS.encode())
                message = {**message, "body": said}
            await send(message)

        await self.app({**scope, "headers": plain}, body, shown)
        if body.refused:
            raise body.refused

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.attempts is None:
            return await self.app(scope, receive, send)
        client = client_of(scope)
        self.attempts.begin(client)

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start" and self.attempts:
                judge = self.attempts.right if message["status"] == 200 else self.attempts.wrong
                judge(client)
            await send(message)

        await self.app(scope, receive, heard)

    def _with_files(self, body: bytes) -> bytes:
        """Puts the folder of uploads before the names of files in an event, and refuses other names."""

        def placed(value: Any) -> Any:
            if isinstance(value, list):
                return [placed(v) for v in value]
            if not isinstance(value, dict):
                return value
            value = {k: placed(v) for k, v in value.items() if k != "url"}
            if "path" in value:
                named = value["path"]
                if not (isinstance(named, str) and _UPLOADED.fullmatch(named)):
                    raise Refused(400, "a file is named as its upload was answered, and in no other way")
                value["path"] = self.uploads + named.removeprefix(_UPLOADS)
            return value

        try:
            return json.dumps(placed(json.loads(body))).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None


async def _whole(body: Body) -> bytes:
    pieces = []
    while not body.complete:
        message = await body()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the body did not come whole")
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


def _replayed(body: bytes, after: Receive) -> Receive:
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return pieces.pop() if pieces else await after()

    return receive
