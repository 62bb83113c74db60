"""Asking an end: what is an answer, and what is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import attrs
import pytest
import trio

from gapconn.admin.client import AdminClient, NoAnswerError


@attrs.define
class Slow:
    """An end that answers when it may."""

    url: str = ""
    asked: threading.Event = attrs.field(factory=threading.Event)
    may_answer: threading.Event = attrs.field(factory=threading.Event)
    answered: threading.Event = attrs.field(factory=threading.Event)


@pytest.fixture
def slow() -> Iterator[Slow]:
    subject = Slow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            subject.asked.set()
            subject.may_answer.wait(60)
            with suppress(ConnectionError):  # nobody waits for it any more
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"problems": ["one"]}')
                self.wfile.flush()
            subject.answered.set()

        def log_message(self, *_: object) -> None: ...

    with serving(Handler) as subject.url:
        yield subject
        subject.may_answer.set()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def test_an_end_that_hangs_is_noticed(slow: Slow) -> None:
    async with AdminClient(slow.url, timeout_s=0.2) as client:
        began_s = trio.current_time()
        with trio.fail_after(60), pytest.raises(NoAnswerError, match=r"/health: no answer within 0\.2 s"):
            await client.health()
        assert trio.current_time() - began_s >= 0.2


async def test_who_could_not_run_while_the_answer_came_has_an_answer(slow: Slow) -> None:
    """A monitor on a busy host, or one that was stopped, does not call healthy ends dead."""
    timeout_s = 1.0

    def starve() -> None:
        slow.may_answer.set()
        slow.answered.wait(60)  # nothing else of this process runs meanwhile but the end's thread
        time.sleep(timeout_s)

    async def starve_when_asked() -> None:
        await trio.to_thread.run_sync(slow.asked.wait, 60)
        starve()

    async with AdminClient(slow.url, timeout_s=timeout_s) as client, trio.open_nursery() as nursery:
        nursery.start_soon(starve_when_asked)
        assert (await client.health()).problems == ["one"]


async def test_an_end_that_is_not_there_is_noticed_at_once() -> None:
    async with AdminClient("http://127.0.0.1:1", timeout_s=600) as client:
        with trio.fail_after(60), pytest.raises(NoAnswerError, match=r"http://127\.0\.0\.1:1/health: "):
            await client.health()
