"""The routes that train, in a small application: sessions by cookie, drops, the page and its files."""

from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader

import dia
from dia.serve.limits import Deadline, Limits, Refused
from dia.serve.room import training
from dia.serve.room.drops import Drops
from dia.serve.sessions import COOKIE, Sessions, session_of

ROOM = Path(training.__file__).parent
TOKENS = Path(dia.__file__).parent / "report" / "templates" / "tokens.css"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class NoModel:
    """A `Current` that loads nothing, and remembers what it was to serve."""

    def __init__(self):
        self.served = None

    @property
    def there(self):
        return self.served is not None

    def get(self):
        if self.served is None:
            raise Refused(409, "no model is served yet")
        return SimpleNamespace(run=self.served, number=1)

    def serve(self, run):
        self.served = run
        return self.get()


def app_of(runs, *, data_root=None, current=None):
    """The application; `app.state.room` is the room."""
    room = SimpleNamespace(
        current=current or NoModel(),
        sessions=Sessions(),
        limits=Limits(),
        runs=Path(runs),
        data_root=data_root,
        at_end=[],
        writing=set(),
    )

    @asynccontextmanager
    async def life(_):
        yield
        room.sessions.close()
        for end in room.at_end:
            end()

    app = FastAPI(lifespan=life)
    app.state.room = room

    @app.exception_handler(Refused)
    async def refused(request, error):
        return JSONResponse({"detail": error.line}, error.status)

    @app.middleware("http")
    async def guard(request: Request, call_next):
        session = room.sessions.find(request.cookies.get(COOKIE, "")) or room.sessions.open("Ada")
        request.state.session = session
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = CSP
        answer.set_cookie(COOKIE, session.key, httponly=True, samesite="strict")
        return answer

    @app.post("/room/drops")
    def new(request: Request):
        return {"drop": Drops.of(session_of(request)).new()}

    @app.post("/room/drops/{drop}/files")
    async def add(request: Request, drop: str):
        form = await request.form()
        files = [(f.filename, f.file) for f in form.getlist("files")]
        found = Drops.of(session_of(request)).add(drop, files, Deadline(60))
        return {"files": len(found.names), "bytes": found.bytes, "problems": []}

    @app.delete("/room/drops/{drop}")
    def cancel(request: Request, drop: str):
        Drops.of(session_of(request)).cancel(drop)
        return {}

    app.include_router(training.routes(room))
    pages = Environment(loader=FileSystemLoader(ROOM / "templates"), autoescape=True)

    @app.get("/train")
    def train():
        values = {"session": True, "token": False, "reader": "Ada", "model": "no model yet", "here": "train"}
        return HTMLResponse(
            pages.get_template("train.html").render(limits=("For research.", "More."), **values)
        )

    @app.get("/")
    def read():
        return HTMLResponse("<!doctype html><title>Reading room</title><h1>Reading room</h1>")

    @app.get("/static/{name}")
    def static(name: str):
        file = TOKENS if name == TOKENS.name else ROOM / "static" / name
        return Response(file.read_bytes(), media_type=KINDS[file.suffix])

    return app
