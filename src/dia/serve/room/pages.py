"""HTML pages of the reading room, its static files, login and logout; and the service's description.

Files are read once, at the start: no name in an address is ever a path. Knows templates, sessions and
cookies; knows no images, models' results or marks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...report.constants import LIMITS
from ..attempts import Keys
from ..limits import Refused
from ..middleware import client_of
from ..sessions import Session, cookie_name, plain_reader
from .base import Room

_HERE = Path(__file__).parent
_TOKENS = _HERE.parents[1] / "report" / "templates" / "tokens.css"  # shared with the reports
_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")
_KINDS = {
    ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
    ".png": "image/png",
}  # fmt: skip
# Swagger's style sheet draws arrows and locks from data: addresses; scripts and styles are files here too
_DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


class _File(NamedTuple):
    data: bytes
    kind: str
    tag: str


def docs() -> APIRouter:
    """Returns the routes of the service's description, `/docs`, which loads nothing from elsewhere."""
    router = APIRouter(include_in_schema=False)
    swagger = Path(str(files("fastapi_offline"))) / "static"
    paths = [
        *(_HERE / "static" / name for name in ("docs.js", "icon.svg")),
        *(swagger / name for name in _SWAGGER),
    ]
    shown = {path.name: _file(path) for path in paths}

    @router.get("/docs")
    async def described() -> Response:
        page = _environment().get_template("docs.html").render()
        return HTMLResponse(page, headers={"Content-Security-Policy": _DOCS_CSP})

    @router.get("/docs/{name}")
    async def part(request: Request, name: str) -> Response:
        return _sent(request, shown.get(name))

    return router


def routes(room: Room, keys: Keys) -> APIRouter:
    """Returns the routes of the pages `/`, `/train` and `/login`, of `/logout`, and of `/static`.

    Args:
        room: the reading room.
        keys: whether there is a token, and which.
    """
    router = APIRouter(include_in_schema=False)
    shown = {f.name: _file(f) for f in (_HERE / "static").iterdir() if f.suffix in _KINDS}
    shown[_TOKENS.name] = _file(_TOKENS)

    def opened(request: Request, template: str, here: str) -> Response:
        if request.state.foreign:  # a link led here, with which no cookie comes: from here on one does
            return _page("enter.html", to=request.url.path)
        session: Session | None = request.state.session
        if session is None and keys.needed:
            return RedirectResponse("/login", 303)
        if session is None and not _tells_sites(request):
            return _page("enter.html", to="")
        found = session or room.sessions.open()
        if here == "read" and not room.current.there:
            answer: Response = RedirectResponse("/train", 303)
        else:
            values: dict[str, Any] = {
                "here": here, "session": True, "token": keys.needed, "model": _model_of(room),
                "loading": room.current.loading,
            }  # fmt: skip
            answer = _page(template, reader=found.reader, **values)
        if session is None:
            _keep(request, answer, found)
        return answer

    @router.get("/")
    async def read(request: Request) -> Response:
        return opened(request, "room.html", "read")

    @router.get("/train")
    async def train(request: Request) -> Response:
        return opened(request, "train.html", "train")

    @router.get("/login")
    async def login_page() -> Response:
        return _page("login.html") if keys.needed else RedirectResponse("/", 303)

    @router.post("/login")
    async def login(request: Request) -> Response:
        if not keys.needed:
            answer = RedirectResponse("/", 303)
            if request.state.session is None:
                _keep(request, answer, room.sessions.open())
            return answer
        given = _form(await request.body())
        if not (name := plain_reader(given.get("name", ""))):
            return _page("login.html", 422, problem="Give a name: it stands at your marks.")
        try:
            keys.check(given.get("token", "").encode().decode("latin-1"), client_of(request.scope))
        except Refused as refused:
            line = "That is not the token." if refused.status == 401 else f"{refused.line.capitalize()}."
            return _page("login.html", refused.status, refused.headers, problem=line)
        if request.state.session:  # whoever had it before has it no more
            room.sessions.end(request.state.session.key)
        answer = RedirectResponse("/", 303)
        _keep(request, answer, room.sessions.open(name))
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        room.sessions.end(request.state.session.key)
        answer = RedirectResponse("/login" if keys.needed else "/", 303)
        answer.delete_cookie(cookie_name(request.scope), **_cookie(request))
        return answer

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        return _sent(request, shown.get(name))

    return router


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _page(
    template: str, status: int = 200, headers: Mapping[str, str] = MappingProxyType({}), **values: Any
) -> Response:
    """A page. Its forms tell where they come from, which they would not with `no-referrer`."""
    first, _, rest = LIMITS.partition(". ")
    second, _, rest = rest.partition(". ")
    known = {"session": False, "problem": "", "limits": (f"{first}. {second}.", rest)}
    html = _environment().get_template(template).render(**known | values)
    return HTMLResponse(html, status, headers={**headers, "Referrer-Policy": "same-origin"})


def _model_of(room: Room) -> str:
    if (served := room.current.served) is None:
        return "the model is being loaded" if room.current.loading else "no model yet"
    about = served.inferencer.about()
    return f"{about['method']}, fitted on {about['n_train']} normals"


def _tells_sites(request: Request) -> bool:
    """Whether browsers say from which site a link leads here: they do over TLS, and on this machine.

    Elsewhere a link could not be told from a first visit, and the new session would take the place of the
    reader's own, whose cookie did not come with the link.
    """
    return request.url.scheme == "https" or f"{request.url.hostname}".strip("[]") in (
        "localhost",
        "127.0.0.1",
        "::1",
    )


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        raise Refused(400, "the form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}


def _cookie(request: Request) -> dict[str, Any]:
    secure = request.url.scheme == "https"
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": secure}


def _keep(request: Request, answer: Response, session: Session) -> None:
    answer.set_cookie(cookie_name(request.scope), session.key, **_cookie(request))


def _file(path: Path) -> _File:
    data = path.read_bytes()
    return _File(data, _KINDS[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _sent(request: Request, file: _File | None) -> Response:
    """A file, or that the browser has it already."""
    if file is None:
        raise Refused(404, "there is nothing at this address")
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.kind, headers=headers)
