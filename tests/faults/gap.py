"""The gap between the ends as a process of its own, so that nothing else slows it down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from gapconn.units import Address
from tests.processes.ends import LIMIT_S, POLL_S, Ends


@attrs.define(eq=False)
class Gap:
    """A running relay (`python -m gapconn.testing.gap`)."""

    process: subprocess.Popen[bytes]
    out_file: Path
    listens: Address
    """Where the egress behind it is to listen."""

    async def said(self, line: int) -> dict[str, Any]:
        """Wait for a line of JSON, counted from 0."""
        deadline_s = trio.current_time() + LIMIT_S
        while len(lines := self.out_file.read_text().split("\n")[:-1]) <= line:
            assert trio.current_time() < deadline_s, "the gap says nothing"
            await trio.sleep(POLL_S)
        facts: dict[str, Any] = json.loads(lines[line])
        return facts

    def toggle(self) -> None:
        """Take the link away, or give it back."""
        self.process.send_signal(signal.SIGUSR1)

    def toggle_faults(self) -> None:
        """Let everything pass, or do harm again."""
        self.process.send_signal(signal.SIGUSR2)

    async def end(self) -> dict[str, Any]:
        """End it; what it did (`GapCounts`)."""
        self.process.terminate()
        return await self.said(1)


def _start(ends: Ends, listens: Address, faults: Sequence[str]) -> Gap:
    out_file = ends.directory / "gap.out"
    with out_file.open("wb") as out, (ends.directory / "gap.err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "gapconn.testing.gap", str(ends.address), str(listens), *faults],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
    return Gap(process, out_file, listens)


@asynccontextmanager
async def gap(ends: Ends, faults: Sequence[str] = ()) -> AsyncIterator[Gap]:
    """A gap from where the ingress sends to, to a free address; with options of the relay."""
    running = _start(ends, ends.free_address(), faults)
    try:
        await running.said(0)
        yield running
    finally:
        running.process.kill()
        running.process.wait()
