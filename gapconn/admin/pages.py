"""The pages of the admin endpoint, read only, and `/` that links them."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gapconn.admin.metrics import make_registry
from gapconn.admin.view import AdminView

_Endpoint = Callable[[Request], Awaitable[Response]]

_OPENMETRICS = "application/openmetrics-text"
_FRESH = {"Cache-Control": "no-store"}


def make_app(view: AdminView) -> Starlette:
    """The ASGI application that shows `view`."""
    registry = make_registry(view)

    async def live(request: Request) -> Response:
        return _verdict(view.live(), good="alive", bad="hung")

    async def health(request: Request) -> Response:
        return _verdict(view.health(), good="ok", bad="failing")

    async def ready(request: Request) -> Response:
        return _verdict(view.ready(), good="ready", bad="not ready")

    async def metrics(request: Request) -> Response:
        # Only the format is negotiated: versions and escaping that a client asks for are not worth parsing.
        wants_openmetrics = _OPENMETRICS in request.headers.get("accept", "")
        encode, media_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if wants_openmetrics else "")
        return Response(encode(registry), headers={"Content-Type": media_type, **_FRESH})

    async def status(request: Request) -> Response:
        return _json(view.status())

    async def index(request: Request) -> Response:
        return HTMLResponse(_index(view, pages), headers=_FRESH)

    pages: dict[str, tuple[str, _Endpoint]] = {
        "/live": ("would a restart help? 200 if not, or 503", live),
        "/health": ("is anything wrong? 200 or 503", health),
        "/ready": ("can data pass? 200 or 503", ready),
        "/metrics": ("for Prometheus", metrics),
        "/status": ("everything, as JSON", status),
    }
    app = Starlette(routes=[Route("/", index), *(Route(path, endpoint) for path, (_, endpoint) in pages.items())])
    app.router.redirect_slashes = False
    return app


def _verdict(problems: list[str], *, good: str, bad: str) -> Response:
    if problems:
        return _json({"status": bad, "problems": problems}, status_code=503)
    return _json({"status": good})


def _json(content: dict[str, Any], status_code: int = 200) -> Response:
    # A value that JSON does not know is shown as text: a status page must not fail on an odd fact.
    body = msgspec.json.encode(content, enc_hook=str)
    return Response(body, status_code=status_code, media_type="application/json", headers=_FRESH)


def _index(view: AdminView, pages: dict[str, tuple[str, _Endpoint]]) -> str:
    title = html.escape(f"gapconn {view.role} of link {view.link}")
    links = "".join(f'<li><a href="{path}">{path}</a>: {meaning}</li>' for path, (meaning, _) in pages.items())
    return f'<!doctype html><html lang="en"><title>{title}</title><h1>{title}</h1><ul>{links}</ul></html>'
