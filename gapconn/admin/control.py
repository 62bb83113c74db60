"""Controlling an ingress over HTTP: `POST /pause`, `/resume` and `/resend`, for whoever shows the token.

An answer is JSON. What was not accepted has `error`, which says what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from gapconn.admin.pages import json_response
from gapconn.admin.token import load_token, shows
from gapconn.admin.view import Endpoint, Page
from gapconn.bundle import BundleError
from gapconn.errors import ConfigError, GapconnError, LinkError
from gapconn.gaps import wanted_of
from gapconn.pauses import OPERATOR
from gapconn.resend import cannot_resend
from gapconn.store.resends import ResendFile
from gapconn.store.state import IngressState

if TYPE_CHECKING:
    from gapconn.ingress import Ingress

BODY_BYTES_MAX: Final = 16 << 20
WAIT_S_MAX: Final = 30.0
REASON_CHARACTERS_MAX: Final = 500
_OWNER: Final = re.compile(r"operator|monitor:[A-Za-z0-9._-]{1,64}")

T = TypeVar("T")


class PauseWish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /pause`."""

    owner: str = OPERATOR
    """`operator`, or `monitor:NAME`."""
    reason: str = "no reason given"
    positions: dict[str, int] | None = None
    """By `cluster/topic/partition`, the next position that the egress misses: the group goes back there."""
    wait_s: float = 0.0
    """How long the answer may wait for the source to be at rest."""


class ResumeWish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /resume`."""

    owner: str = OPERATOR
    unrenewed_s: float | None = None
    """Only if the hold was not renewed for so long: that of a monitor that is gone."""
    all: bool = False
    """Everybody's."""


class _RefusedError(Exception):
    """The request is not done; the answer says why."""

    def __init__(self, status_code: int, error: str, **headers: str) -> None:
        super().__init__(error)
        self.status_code = status_code
        self.headers = headers


class IngressControl:
    """The pages by which an ingress is controlled.

    Args:
        ingress: It.
        state: Where holds are stored, once they count: what is urgent does not wait for a disk.
        token_file: The token that a request must show; empty if nobody can control it.
        requests: Where requests to send again are left.
    """

    def __init__(self, ingress: Ingress, state: IngressState, token_file: str, requests: ResendFile) -> None:
        self._ingress = ingress
        self._state = state
        self._token_file = token_file
        self._requests = requests
        self._storing = trio.Lock()

    def pages(self) -> list[Page]:
        """What the admin endpoint gets."""
        return [
            Page("/pause", "take nothing from the source (needs the token)", self._guarded(self.pause), "POST"),
            Page("/resume", "work again (needs the token)", self._guarded(self.resume), "POST"),
            Page("/resend", "send again what is in /gaps (needs the token)", self._guarded(self.resend), "POST"),
        ]

    def _guarded(self, do: Callable[[Request], Awaitable[dict[str, Any]]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                await self._check_token(request)
                return json_response(await do(request))
            except _RefusedError as refused:
                answer = json_response({"error": str(refused)}, status_code=refused.status_code)
                answer.headers.update(refused.headers)
                return answer

        return endpoint

    async def _check_token(self, request: Request) -> None:
        if not self._token_file:
            raise _RefusedError(403, "control is off: this ingress has no [admin] token_file")
        try:
            token = await trio.to_thread.run_sync(load_token, Path(self._token_file))
        except ConfigError as error:
            raise _RefusedError(503, f"control is off: {error}") from error
        if not shows(request.headers.get("authorization"), token):
            what = "show the token of this ingress's [admin] token_file: Authorization: Bearer ..."
            raise _RefusedError(401, what, **{"WWW-Authenticate": "Bearer"})

    async def pause(self, request: Request) -> dict[str, Any]:
        """Hold the ingress; wait a while until the source is at rest."""
        wish = await _read(request, PauseWish)
        _check_owner(wish.owner)
        ingress, pauses = self._ingress, self._ingress.pauses
        reason = wish.reason[:REASON_CHARACTERS_MAX]
        async with self._storing:
            known = {hold.owner: hold.reason for hold in pauses.holds}
            try:
                ingress.hold(wish.owner, reason, wish.positions)
            except ValueError as error:
                raise _RefusedError(409, str(error)) from error
            if known.get(wish.owner) != reason:
                await self._store()
        with trio.move_on_after(max(0.0, min(wish.wait_s, WAIT_S_MAX))):
            await ingress.at_rest.wait_value(True)
        return self._facts()

    async def resume(self, request: Request) -> dict[str, Any]:
        """Let go."""
        wish = await _read(request, ResumeWish)
        _check_owner(wish.owner)
        pauses = self._ingress.pauses
        async with self._storing:
            if wish.all:
                released = [hold.owner for hold in pauses.release_all()]
            else:
                released = [wish.owner] if pauses.release(wish.owner, unrenewed_s=wish.unrenewed_s) else []
            if released:
                self._ingress.log.warning("resumed", released=released, held_by=[hold.owner for hold in pauses.holds])
                await self._store()
        return {"released": released, **self._facts()}

    async def _store(self) -> None:
        try:
            await trio.to_thread.run_sync(self._state.save_holds, self._ingress.pauses.holds)
        except LinkError as error:
            # It stands, or is gone, as long as this process lives.
            raise _RefusedError(500, f"done, but not stored, so a restart forgets it: {error}") from error

    def _facts(self) -> dict[str, Any]:
        return {
            "link": self._ingress.pair.link.name,
            "at_rest": self._ingress.at_rest.value,
            "holds": self._ingress.pauses.facts(),
            "rewound": self._ingress.context.status.get("rewound", {}),
        }

    async def resend(self, request: Request) -> dict[str, Any]:
        """Leave a request to send again what a list of gaps says; its number."""
        problem = cannot_resend(self._ingress.source_type, buffered=self._ingress.repeats is not None)
        if problem is not None:
            raise _RefusedError(409, problem)
        body = await _body(request)
        try:
            wanted = await trio.to_thread.run_sync(
                partial(wanted_of, self._ingress.pair, body.decode("utf-8", "replace"), again=False)
            )
            number = await trio.to_thread.run_sync(self._requests.add, wanted)
        except BundleError as error:
            raise _RefusedError(400, str(error)) from error
        except GapconnError as error:
            raise _RefusedError(409, str(error)) from error
        return {"request": number, "ranges": len(wanted.spans)}


def _check_owner(owner: str) -> None:
    if _OWNER.fullmatch(owner) is None:
        raise _RefusedError(400, f"owner: got {owner[:80]!r}, allowed: operator, or monitor:NAME")


async def _read(request: Request, form: type[T]) -> T:
    body = await _body(request)
    try:
        return msgspec.json.decode(body or b"{}", type=form)
    except msgspec.MsgspecError as error:
        raise _RefusedError(400, f"the body is not as it must be: {error}") from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise _RefusedError(413, f"more than {BODY_BYTES_MAX} bytes")
    return bytes(body)
