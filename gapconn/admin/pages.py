"""The pages of the admin endpoint: those of every end, those of this one, and `/`."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gapconn.admin.metrics import make_registry
from gapconn.admin.view import AdminView, Page

_OPENMETRICS = "application/openmetrics-text"
_FRESH = {"Cache-Control": "no-store"}


def make_app(view: AdminView) -> Starlette:
    """The ASGI application that shows `view`."""
    registry = make_registry(view)

    async def live(request: Request) -> Response:
        return _verdict(view.live(), good="alive", bad="hung")

    async def health(request: Request) -> Response:
        return _verdict(view.health(), good="ok", bad="failing", facts=view.health_facts())

    async def ready(request: Request) -> Response:
        return _verdict(view.ready(), good="ready", bad="not ready")

    async def metrics(request: Request) -> Response:
        # Only the format is negotiated: versions and escaping that a client asks for are not worth parsing.
        wants_openmetrics = _OPENMETRICS in request.headers.get("accept", "")
        encode, media_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if wants_openmetrics else "")
        return Response(encode(registry), headers={"Content-Type": media_type, **_FRESH})

    async def status(request: Request) -> Response:
        return json_response(view.status())

    async def index(request: Request) -> Response:
        return HTMLResponse(_index(view, pages), headers=_FRESH)

    pages = [
        Page("/live", "would a restart help? 200 if not, or 503", live),
        Page("/health", "is anything wrong? 200 or 503", health),
        Page("/ready", "can data pass? 200 or 503", ready),
        Page("/metrics", "for Prometheus", metrics),
        Page("/status", "everything, as JSON", status),
        *view.pages(),
    ]
    routes = [Route(page.path, page.endpoint, methods=[page.method]) for page in pages]
    app = Starlette(routes=[*routes, Route("/", index)])  # a view may have an index of its own
    app.router.redirect_slashes = False
    return app


def _verdict(problems: list[str], *, good: str, bad: str, facts: Mapping[str, Any] | None = None) -> Response:
    if problems:
        return json_response({"status": bad, "problems": problems, **(facts or {})}, status_code=503)
    return json_response({"status": good, **(facts or {})})


def json_response(content: Mapping[str, Any], status_code: int = 200) -> Response:
    """`content` as an answer that nobody keeps."""
    # A value that JSON does not know is shown as text: a status page must not fail on an odd fact.
    body = msgspec.json.encode(content, enc_hook=str)
    return Response(body, status_code=status_code, media_type="application/json", headers=_FRESH)


def _index(view: AdminView, pages: Sequence[Page]) -> str:
    title = html.escape(f"gapconn {view.role} of link {view.link}")
    problems = _list("Wrong now", [html.escape(problem) for problem in [*view.health(), *view.ready()]])
    found = view.status().get("why", {}).get("findings", [])
    losses = _list("What was lost where, and who else sends", [_finding(each) for each in found])
    links = _list("Pages", [_link(page) for page in pages])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f"{problems}{losses}{links}</html>"
    )


def _link(page: Page) -> str:
    if page.method == "GET":
        return f'<a href="{page.path}">{page.path}</a>: {page.meaning}'
    return f"{page.method} {page.path}: {page.meaning}"


def _finding(found: dict[str, Any]) -> str:
    level, what, do = (html.escape(found[key]) for key in ("level", "what", "do"))
    return f"<b>{level}</b>: {what}.<br>{do}"


def _list(heading: str, items: list[str]) -> str:
    """Nothing where there is nothing to tell."""
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>{heading}</h2><ul>{rows}</ul>" if items else ""
