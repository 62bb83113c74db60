"""Repeats end to end: a gap that loses and is away, an egress that is killed, and nothing is missing in the end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from gapconn.testing.faults import FaultPlan, GapCounts, GapSwitch
from gapconn.testing.gap import relay
from gapconn.units import Address
from tests.processes.ends import End, Ends
from tests.processes.test_resend import command

STDIN, STDOUT = 'type = "stdin"', 'type = "stdout"'
LINK: dict[str, Any] = {"rate": "20 Mbit/s", "batch_bytes": "4 KiB", "fec": {"repair": "0%"}}


@asynccontextmanager
async def gap(ends: Ends, plan: FaultPlan) -> AsyncIterator[tuple[Address, GapSwitch, GapCounts]]:
    """A gap in front of an egress that listens at the address yielded."""
    listen, switch, counts = ends.free_address(), GapSwitch(), GapCounts()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: relay(
            ends.address, listen, plan, counts, switch=switch, task_status=task_status
        ))  # fmt: skip
        yield listen, switch, counts
        nursery.cancel_scope.cancel()


@attrs.define
class Lines:
    """Numbered lines that go into an ingress, and those that came out at the egress."""

    ingress: End
    out: Path
    written: int = 0
    """By this ingress and those before it."""
    before: int = attrs.field(default=attrs.Factory(lambda self: self.written, takes_self=True), init=False)

    async def write(self, count: int, *, pause_s: float = 0.0, chunk: int = 50) -> None:
        """Write so many more, a few at a time."""
        assert self.ingress.process.stdin is not None
        for _ in range(0, count, chunk):
            text = "".join(f"{number:>90}\n" for number in range(self.written, self.written + chunk))
            await trio.to_thread.run_sync(os.write, self.ingress.process.stdin.fileno(), text.encode())
            self.written += chunk
            await trio.sleep(pause_s)

    @property
    def arrived(self) -> list[int]:
        return [int(line) for line in self.out.read_text().split("\n")[:-1]]

    @property
    def complete(self) -> bool:
        return set(self.arrived) == set(range(self.written))


async def mended(egress: End, lines: Lines) -> dict[str, Any]:
    """Wait until everything has arrived and the journal has nothing open."""
    await egress.until(lambda: lines.complete, "all lines have arrived")
    return await egress.until_status(lambda s: s["journal"]["open_entries"] == 0, "the journal is closed")


@pytest.mark.req("GC-RPT-1")
async def test_a_gap_that_loses_a_fifth_and_is_away_for_a_while(ends: Ends) -> None:
    """Without any error correction, the repeats bring everything."""
    ends.configure(STDIN, STDOUT, repeat=["500ms", "1s", "2s", "4s", "6s"], **LINK)
    ends.remember_a_session()
    async with gap(ends, FaultPlan(drop=0.03, burst=10, burst_every=150, seed=11)) as (listen, switch, counts):
        out = ends.directory / "out.txt"
        egress = await ends.egress(stdout=out, environ={"GAPCONN_LINK_BIND": str(listen)})
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        lines = Lines(ingress, out)
        await lines.write(2_000, pause_s=0.01)
        switch.on = False
        await lines.write(2_000, pause_s=0.01)
        await trio.sleep(1.0)
        switch.on = True
        await lines.write(2_000, pause_s=0.01)
        switch.faults = False  # chance must not decide: the last repeats come through
        status = await mended(egress, lines)
        sent = (await ingress.status())["repeats"]
    assert len(lines.arrived) == lines.written, "nothing twice"
    assert counts.dropped > 60
    assert status["journal"]["positions_missing"] == 0
    assert sent["messages"] > 0
    assert (sent["not_kept"], sent["dropped"], sent["alarms"]) == (0, 0, [])
    assert egress.logged("messages_lost")


async def test_what_a_killed_egress_missed_is_mended_by_repeats(ends: Ends) -> None:
    # However long this machine takes to start the second egress: one of them comes after that.
    ends.configure(STDIN, STDOUT, "max_bytes = 0", repeat=["5s", "10s", "20s", "30s", "50s"], **LINK)
    ends.remember_a_session()
    out = ends.directory / "out.txt"
    first = await ends.egress(stdout=out)
    ingress = await ends.ingress(stdin=subprocess.PIPE)
    lines = Lines(ingress, out)
    await lines.write(1_000)
    await first.until(lambda: lines.complete, "the first lines have arrived")
    await first.kill()
    at_the_kill = len(lines.arrived)
    await lines.write(2_000, pause_s=0.01)
    second = await ends.egress(stdout=out)
    await lines.write(1_000, pause_s=0.01)
    await second.until(lambda: lines.written - 1 in lines.arrived, "the last line has arrived")
    status = await mended(second, lines)
    assert second.total("messages_lost") > 0
    assert status["journal"]["entries"] > 0
    twice = len(lines.arrived) - lines.written
    assert 0 <= twice <= at_the_kill
    assert await ingress.stop(signal.SIGTERM) == 0
    await second.wait_logged("session_ended")
    assert ingress.log[-1]["event"] in {"session_closed", "repeats_left"}, "it does not wait for what is to be repeated"


@pytest.mark.req("GC-RPR-9", "GC-RPR-10")
async def test_a_list_of_what_is_missing_is_resent_from_the_buffer(ends: Ends) -> None:
    """Of the running session, of one that was killed, and what the buffer has no more: lines from a pipe."""
    buffer = "\n[repeat_buffer]\nmax_bytes = '1 MiB'"
    ends.configure(STDIN, STDOUT, "max_bytes = 0" + buffer, **LINK)
    ends.remember_a_session()
    out, gaps = ends.directory / "out.txt", ends.directory / "gaps.json"

    async def carry() -> subprocess.CompletedProcess[str]:
        exported = await command(ends, "gaps", "export", str(ends.file), "-o", str(gaps))
        assert exported.returncode == 0, exported.stderr
        return await command(ends, "resend", str(ends.file), "--gaps", str(gaps))

    async with gap(ends, FaultPlan()) as (listen, switch, _):
        egress = await ends.egress(stdout=out, environ={"GAPCONN_LINK_BIND": str(listen)})

        async def lose(lines: Lines, count: int) -> None:
            """Lose so many lines in the middle of others, and wait until the egress knows."""
            before = (await egress.status())["missed"]["records"]
            await lines.write(100)
            await egress.until(lambda: lines.written - 1 in lines.arrived, "the lines before have arrived")
            switch.on = False
            await lines.write(count)
            await lines.ingress.until_status(
                lambda s: s["sent"]["records"] == lines.written - lines.before, "all are sent"
            )
            await lines.ingress.until_status(
                lambda s: s["repeats"]["kept"] == s["sent"]["messages"], "what was sent is kept"
            )
            switch.on = True
            await lines.write(100)
            await egress.until(lambda: lines.written - 1 in lines.arrived, "the lines behind have arrived")
            await egress.until_status(lambda s: s["missed"]["records"] > before, "they are missed")

        first = Lines(await ends.ingress(stdin=subprocess.PIPE), out)
        await lose(first, 500)
        assert not first.complete
        resent = await carry()
        assert resent.returncode == 0, resent.stdout + resent.stderr
        await mended(egress, first)
        assert len(first.arrived) == first.written

        await lose(first, 500)
        await first.ingress.kill()
        second = Lines(await ends.ingress(stdin=subprocess.PIPE), out, written=first.written)
        resent = await carry()
        assert resent.returncode == 0, resent.stdout + resent.stderr
        assert "messages sent" in resent.stdout
        await mended(egress, second)
        assert len(second.arrived) == second.written

        await lose(second, 500)
        await second.write(14_000, chunk=500)  # more than the buffer holds
        resent = await carry()
        assert "gone: messages" in resent.stdout
        await egress.until_status(lambda s: s["journal"]["open_entries"] == 0, "nothing is open")
        assert egress.logged("gap_closed")[-1]["outcome"] == "unrecoverable"
        missing = set(range(second.written)) - set(second.arrived)
        assert 0 < len(missing) <= 500
