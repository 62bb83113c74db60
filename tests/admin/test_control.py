"""Controlling an ingress over HTTP: who may, what is answered, and what becomes of the source."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import structlog
import trio

from gapconn.admin.control import IngressControl
from gapconn.admin.ingress_view import IngressView
from gapconn.admin.server import serve_admin
from gapconn.bundle import Bundle, Lost, as_json
from gapconn.ingress import Ingress
from gapconn.protocol.registry import DatagramType, Phase
from gapconn.protocol.wire import Announcement, Header
from gapconn.repeats import Repeats
from gapconn.sources import Outlet
from gapconn.store.repeat_buffer import RepeatBuffer
from gapconn.store.resends import ResendFile
from gapconn.store.state import IngressState
from gapconn.units import Address
from tests.services import ingress, link, numbers, socket_of, until

TOKEN = "0123456789abcdef0123456789abcdef"


@attrs.define
class Counting:
    """A source that sends numbers, notes when it is cancelled, and goes on where it was."""

    sent: int = 0
    runs: int = 0
    stopped: int = 0

    async def __call__(self, outlet: Outlet) -> None:
        self.runs += 1
        try:
            while True:
                await outlet.send(numbers(self.sent))
                self.sent += 1
                await trio.sleep(0.001)
        finally:
            self.stopped += 1


@attrs.define
class Controlled:
    """An ingress with its admin endpoint."""

    end: Ingress
    source: Counting
    address: Address
    state: IngressState

    async def post(self, path: str, body: Any = None, *, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=f"http://{self.address}", trust_env=False, verify=False) as client:
            content = body if isinstance(body, str) else json.dumps(body or {})
            return await client.post(path, content=content, headers=headers, timeout=60)

    async def health(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=f"http://{self.address}", trust_env=False, verify=False) as client:
            facts: dict[str, Any] = (await client.get("/health", timeout=60)).json()
            return facts


@asynccontextmanager
async def controlled(
    directory: Path, *, token: str = TOKEN, mode: int = 0o600, buffer: RepeatBuffer | None = None
) -> AsyncIterator[Controlled]:
    token_file = directory / "token"
    if token:
        token_file.touch(mode=0o600)
        token_file.write_text(f"{token}\n")
        token_file.chmod(mode)
    way, source = link(directory), Counting()
    repeats = Repeats(buffer, way, epoch=2, log=structlog.get_logger()) if buffer is not None else None
    end = ingress(way, source, repeats=repeats)
    with (
        IngressState.open(directory, way.name, way.id) as state,
        ResendFile.open(directory, way.name, way.id) as requests,
        trio.fail_after(60),
    ):
        control = IngressControl(end, state, str(token_file) if token else "", requests)
        async with trio.open_nursery() as nursery:
            view = IngressView(end, control.pages())
            address = await nursery.start(serve_admin, Address("127.0.0.1", 0), view)
            nursery.start_soon(end.run)
            await until(lambda: source.sent > 0)
            yield Controlled(end, source, address, state)
            nursery.cancel_scope.cancel()


def last_phase(end: Ingress) -> Phase:
    datagram = [each for each in socket_of(end).datagrams if Header.unpack(each).type != DatagramType.DATA][-1]
    return Phase(Announcement.unpack(datagram[48:-8]).phase)


@pytest.mark.req("GC-SESS-17")
async def test_a_pause_stops_the_source_and_not_the_session(tmp_path: Path) -> None:
    async with controlled(tmp_path) as subject:
        answer = await subject.post("/pause", {"reason": "disk", "wait_s": 30})
        assert (answer.status_code, answer.json()["at_rest"]) == (200, True)
        assert (await subject.health())["holds"][0]["owner"] == "operator"
        assert (subject.source.runs, subject.source.stopped) == (1, 1)
        sent, heartbeats = subject.source.sent, subject.end.core.counters.heartbeats
        await until(lambda: subject.end.core.counters.heartbeats > heartbeats + 1)
        assert last_phase(subject.end) is Phase.PAUSED
        assert subject.source.sent == sent

        answer = await subject.post("/resume")
        assert answer.json()["released"] == ["operator"]
        await until(lambda: subject.source.sent > sent + 5)
        await until(lambda: last_phase(subject.end) is Phase.ACTIVE)


async def test_a_hold_is_stored_and_so_is_its_end(tmp_path: Path) -> None:
    async with controlled(tmp_path) as subject:
        await subject.post("/pause", {"owner": "monitor:one", "reason": "dead"})
        await subject.post("/pause", {"reason": "disk"})
        assert {(hold.owner, hold.reason) for hold in subject.state.holds()} == {
            ("monitor:one", "dead"),
            ("operator", "disk"),
        }
        assert (await subject.post("/resume")).json()["holds"][0]["owner"] == "monitor:one"
        assert [hold.owner for hold in subject.state.holds()] == ["monitor:one"]
        assert (await subject.post("/resume", {"all": True})).json()["holds"] == []
        assert subject.state.holds() == []


@pytest.mark.parametrize(
    ("shown", "made", "mode", "refusal"),
    [
        (TOKEN, "", 0o600, (403, "no [admin] token_file")),
        ("", TOKEN, 0o600, (401, "show the token")),
        ("another-token-0123456789", TOKEN, 0o600, (401, "show the token")),
        (TOKEN, TOKEN, 0o644, (503, "chmod 600")),
        (TOKEN, "short", 0o600, (503, "not a token")),
    ],
)
async def test_without_the_token_nothing_is_done(
    tmp_path: Path, shown: str, made: str, mode: int, refusal: tuple[int, str]
) -> None:
    status, words = refusal
    async with controlled(tmp_path, token=made, mode=mode) as subject:
        for path in ("/pause", "/resume", "/resend"):
            answer = await subject.post(path, token=shown)
            assert answer.status_code == status
            assert words in answer.json()["error"]
            assert made == "" or made not in answer.text
        assert subject.end.pauses.running.value


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/pause", "{", 400, "the body is not as it must be"),
        ("/pause", {"owner": "nobody"}, 400, "allowed: operator, or monitor:NAME"),
        ("/pause", {"positions": {"c/t/0": "x"}}, 400, "positions"),
        ("/resume", {"every": True}, 400, "every"),
        ("/resend", "{}", 409, "cannot be read a second time"),
    ],
)
async def test_a_wrong_request_is_refused_and_says_why(
    tmp_path: Path, path: str, body: Any, status: int, words: str
) -> None:
    async with controlled(tmp_path) as subject:
        answer = await subject.post(path, body)
        assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
        assert subject.end.pauses.running.value


async def test_a_source_that_cannot_be_read_again_is_asked_for_what_its_buffer_has(tmp_path: Path) -> None:
    way = link(tmp_path)
    wanted = as_json(Bundle(link=way.name, link_id=way.id, spans=[], messages=[Lost(1, 3, 5)]), [])
    with RepeatBuffer(tmp_path, link=way.name, link_id=way.id, max_bytes=1 << 20) as buffer:
        async with controlled(tmp_path, buffer=buffer) as subject:
            answer = await subject.post("/resend", wanted)
            assert (answer.status_code, answer.json().get("request")) == (200, 1), answer.text
