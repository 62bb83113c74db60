"""`gapconn bench` with real processes, over the loopback and through a gap that carries only so much."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from gapconn.testing.faults import FaultPlan, GapCounts
from gapconn.testing.gap import relay
from tests.processes.conftest import ends
from tests.processes.ends import End, Ends

__all__ = ["ends"]  # the fixture

# A whole step fits into the relay's queue, or is far more than it takes: no matter how slow the machine is.
HOLDS = "4 Mbit/s"
IS_TOO_MUCH = "400 Mbit/s"
RELAY_BPS = 20_000_000
RELAY_QUEUE_BYTES = 2 << 20
STEP_S = "2"


@pytest.fixture
def bench(ends: Ends, tmp_path: Path) -> Callable[..., End]:
    """To start `gapconn bench` with these arguments before the file."""

    def start(*arguments: str, output: str = "out", environ: dict[str, str] | None = None) -> End:
        return ends.start("bench", *arguments, stdout=tmp_path / output, environ=environ)

    return start


def said(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


async def test_the_egress_finds_the_rate_that_a_gap_carries(
    ends: Ends, bench: Callable[..., End], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ends.configure(interruption_timeout="2s")
    behind = ends.free_address()
    plan = FaultPlan(rate_bps=RELAY_BPS, queue_bytes=RELAY_QUEUE_BYTES)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: relay(ends.address, behind, plan, GapCounts(), task_status=task_status))
        egress = bench("egress", "--json", environ={"GAPCONN_LINK_BIND": str(behind)})
        await egress.until(lambda: bool(said(out)), "it listens")
        ingress = bench(
            "ingress", "--rates", f"{HOLDS},{IS_TOO_MUCH}", "--seconds", STEP_S, "--size", "1 KiB", output="sent"
        )
        assert await ingress.ended() == 0, ingress.lines
        assert await egress.ended() == 0, egress.lines
        nursery.cancel_scope.cancel()
    listening, low, high, conclusion = said(out)
    assert listening == {"listening": str(behind)}
    assert (low["rate_bps"], low["held"]) == (4_000_000, True)
    assert low["arrived"]["verified"] == low["sent"]["records"] > 100
    assert low["arrived"]["datagrams"] >= low["sent"]["datagrams"]
    assert (high["rate_bps"], high["held"], high["whole"]) == (400_000_000, False, False)
    assert high["arrived"]["datagrams_missed"] > 0
    assert high["arrived"]["messages_lost"] > 0
    assert high["arrived"]["verified"] < high["sent"]["records"]
    assert conclusion["highest_rate_bps"] == 4_000_000
    assert 0 < conclusion["recommended_rate_bps"] <= 3_200_000  # less where the ingress hardly gets to run
    # The state of the link is left alone.
    assert not (tmp_path / "state").exists()


async def test_local_runs_both_ends_and_neither_source_nor_sink_is_needed(
    ends: Ends, bench: Callable[..., End], tmp_path: Path
) -> None:
    ends.configure('type = "kafka"\ntopics = ["${NOT_SET}"]', interruption_timeout="500ms")
    local = bench("local", "--rates", "4 Mbit/s", "--seconds", "0.5")
    assert await local.ended() == 0, local.lines
    text = (tmp_path / "out").read_text()
    assert "link 'orders' to 127.0.0.1:" in text
    assert "1/1" in text
    assert text.count(" held\n") == 1
    assert "Set rate = " in text


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


async def test_a_stopped_ingress_ends_the_bench_and_says_so(
    ends: Ends, bench: Callable[..., End], tmp_path: Path
) -> None:
    ends.configure(interruption_timeout="500ms")
    egress = bench("egress")
    await egress.until(lambda: "waiting for" in (tmp_path / "out").read_text(), "it listens")
    ingress = bench("ingress", "--rates", "4 Mbit/s", "--seconds", "600", output="sent")
    await ingress.until(lambda: "announcing" in (tmp_path / "sent").read_text(), "it runs")
    await ingress.until(lambda: catches(ingress.process.pid, signal.SIGTERM), "it listens to signals")
    await trio.sleep(1)  # so that it is in its step, most likely; the outcome is the same if not
    assert await ingress.stop(signal.SIGTERM) == 1
    assert "stopped before the last step" in (tmp_path / "sent").read_text()
    assert await egress.ended() == 1
    text = (tmp_path / "out").read_text()
    assert "No step came to its end" in text or "Nothing was heard" in text


async def test_an_egress_that_hears_nothing_says_so_when_it_is_stopped(
    bench: Callable[..., End], ends: Ends, tmp_path: Path
) -> None:
    ends.configure()
    egress = bench("egress")
    await egress.until(lambda: "waiting for" in (tmp_path / "out").read_text(), "it listens")
    assert await egress.stop(signal.SIGINT) == 1
    assert egress.lines == []  # that no ingress is heard yet is no news
    assert "Nothing was heard" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["ingress", "--rates", "1 Gbit"], "--rates"),
        (["ingress", "--rates", "1 kbit/s"], "at least"),
        (["ingress", "--size", "3 bytes"], "--size"),
        (["ingress", "--size", "64 MiB"], "message_bytes_max"),
        (["local", "--seconds", "0"], "--seconds"),
    ],
)
async def test_wrong_options_are_refused(
    ends: Ends, bench: Callable[..., End], arguments: list[str], what: str
) -> None:
    ends.configure()
    end = bench(*arguments)
    assert await end.ended() == 2
    assert any(what in line for line in end.lines)


async def test_a_wrong_file_is_refused_as_everywhere(ends: Ends, bench: Callable[..., End]) -> None:
    ends.configure(mtu_bytes=10)
    for form in ("ingress", "egress"):
        end = bench(form)
        assert await end.ended() == 2
        assert any("link.mtu_bytes" in line for line in end.lines)
