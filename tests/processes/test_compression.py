"""Both ends as real processes, with compression: less crosses, and the same arrives."""

from __future__ import annotations

import subprocess

import pytest
import trio

from tests.processes.ends import Ends

LINES = b"".join(b'{"order": %d, "state": "shipped", "where": "Rotterdam"}\n' % number for number in range(40_000))


@pytest.mark.parametrize("method", ["zstd", "lz4"])
@pytest.mark.req("GC-COMP-1", "GC-COMP-3")
async def test_lines_cross_compressed_and_arrive_as_they_were(ends: Ends, method: str) -> None:
    ends.configure('type = "stdin"', 'type = "stdout"', compression=method, batch_bytes="256 KiB")
    ends.remember_a_session()
    out = ends.directory / "out.txt"
    egress = await ends.egress(stdout=out)
    ingress = await ends.ingress(stdin=subprocess.PIPE)
    stdin = ingress.process.stdin
    assert stdin is not None
    await trio.to_thread.run_sync(stdin.write, LINES)
    await trio.to_thread.run_sync(stdin.flush)
    sent = await ingress.until_status(lambda s: s["bodies"]["plain_bytes"] > len(LINES), "all lines are sent")
    assert sent["bodies"]["ratio"] > 3
    assert sent["sent"]["bytes"] < len(LINES) / 2
    stdin.close()
    assert await ingress.ended() == 0
    await egress.until(lambda: out.stat().st_size == len(LINES), "all lines have arrived")
    received = await egress.status()
    assert received["bodies"]["ratio"] > 3
    assert received["bodies"]["plain_bytes"] > len(LINES)
    metrics = (await egress.get("/metrics")).text
    assert 'gapconn_plain_body_bytes_total{link="orders",role="egress"}' in metrics
    assert await egress.stop() == 0
    assert out.read_bytes() == LINES
