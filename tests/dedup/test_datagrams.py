"""Datagrams of two links become one stream, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import trio

from gapconn.dedup.config import load_dedup
from gapconn.dedup.service import DedupService
from gapconn.dedup.view import DedupView
from tests.processes.ends import LIMIT_S, POLL_S, free_host, free_port


async def test_mirrored_datagrams_of_two_links_become_one_stream(tmp_path: Path) -> None:
    host = free_host()
    ports = [free_port(host), free_port(host)]
    with socket.socket(type=socket.SOCK_DGRAM) as target, socket.socket(type=socket.SOCK_DGRAM) as mirror:
        target.bind((host, 0))
        target.settimeout(LIMIT_S)
        lines = ["[dedup]", 'name = "mirror"', 'identity = "hash"', 'silent_after = "1s"']
        for link, port in zip("ab", ports, strict=True):
            lines += ["[[input]]", 'type = "udp"', f'link = "{link}"', f'listen = "{host}:{port}"']
        lines += ["[output]", 'type = "udp"', f'send_to = "{host}:{target.getsockname()[1]}"']
        path = tmp_path / "dedup.toml"
        path.write_text("\n".join(lines))
        service = DedupService(load_dedup(path, {}))
        view = DedupView(service)

        async def until(condition: Callable[[], bool], what: str) -> None:
            deadline_s = trio.current_time() + LIMIT_S
            while not condition():
                assert trio.current_time() < deadline_s, what
                await trio.sleep(POLL_S)

        def came() -> int:
            return sum(counts.records for counts in service.book.links.values())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            await until(lambda: str(service.context.status).count("listening") == 2, "it listens")
            received: list[bytes] = []
            for number in range(20):
                for row, port in enumerate(ports):
                    if number % 5 != row:  # each link loses a fifth
                        mirror.sendto(b"%d" % number, (host, port))
                received.append(await trio.to_thread.run_sync(target.recv, 100))
            await until(lambda: came() == 32 and not view.health(), "all came")
            assert sum(counts.repeats for counts in service.book.links.values()) == 12
            mirror.sendto(b"more", (host, ports[0]))
            await until(lambda: came() == 33 and bool(view.health()), "link b is silent")
            assert "link b" in view.health()[0]
            service.stop()
        assert received == [b"%d" % number for number in range(20)]
        assert target.recv(100) == b"more"
        target.setblocking(False)
        try:
            more: bytes | None = target.recv(100)
        except BlockingIOError:
            more = None
        assert more is None
