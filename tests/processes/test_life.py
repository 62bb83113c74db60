"""Signals, kills and restarts of either end while data flows: what was sent was delivered, or is reported as lost."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from gapconn.testing.gap import FaultPlan, GapCounts, relay
from tests.processes.ends import End, Ends

GENERATE = 'type = "generate"\nsize_bytes = 500'
DISCARD = 'type = "discard"'


def undamaged(status: dict[str, Any]) -> dict[str, Any]:
    """The facts of the discard sink: nothing came damaged, twice or in another order."""
    facts: dict[str, Any] = status["sink"]
    assert (facts["damaged"], facts["duplicates"], facts["reordered"]) == (0, 0, 0)
    assert facts["verified"] == facts["received"] == status["received"]["records"]
    return facts


async def crossed(egress: End, records: int) -> dict[str, Any]:
    """Wait until so many records arrived."""
    return await egress.until_status(lambda s: s["received"]["records"] >= records, f"{records} records arrived")


@pytest.mark.req("GC-SESS-13", "GC-SESS-1", "GC-SESS-6")
async def test_an_ingress_that_is_killed_and_started_again(ends: Ends) -> None:
    """The alarm is raised, and cleared by the successor; SIGINT and SIGTERM are orderly ends."""
    ends.configure(GENERATE, DISCARD, rate="20 Mbit/s")
    ends.remember_a_session()
    egress = await ends.egress()
    first = await ends.ingress()
    await crossed(egress, 2_000)
    assert (await egress.until_healthy(True)).status_code == 200
    await first.kill()
    alarm = await egress.until_healthy(False)
    assert alarm.status_code == 503
    assert "the link is interrupted" in alarm.json()["problems"][0]
    assert (await egress.get("/ready")).status_code == 503
    before = await egress.status()
    undamaged(before)
    assert before["sink"]["missing"] == 0, "of what was heard, all is there"

    second = await ends.ingress()
    await egress.until_healthy(True)
    await crossed(egress, before["received"]["records"] + 2_000)
    sent = await second.status()
    assert sent["epoch"] > before["epoch"]
    assert await second.stop(signal.SIGINT) == 0
    ended = await egress.wait_logged("session_ended")
    assert ended["epoch"] == sent["epoch"]
    third = await ends.ingress()
    await crossed(egress, before["received"]["records"] + ended["records_sent"] + 2_000)
    assert await third.stop(signal.SIGTERM) == 0
    last = await egress.wait_logged("session_ended", 2)
    status = await egress.until_status(lambda s: s["state"] == "closed", "the last session is over")
    assert undamaged(status)["missing"] == 0
    assert status["received"]["records"] == sum(
        records for records in (before["received"]["records"], ended["records_sent"], last["records_sent"])
    )
    assert status["missed"]["datagrams"] == 0
    followed = egress.logged("session_followed")
    assert [entry["reason"] for entry in followed] == ["first heard"] + ["named the session before it"] * 2
    assert len(egress.logged("link_interrupted")) == len(egress.logged("link_restored"))
    assert not egress.logged("conflict_detected")
    assert await egress.stop(signal.SIGINT) == 0
    assert egress.log[-1]["event"] == "sink_drained"


@pytest.mark.req("GC-SESS-6")
async def test_an_ingress_that_is_restarted_at_once_takes_over_at_once(ends: Ends) -> None:
    """Killed and started again before anybody noticed a silence: its StartUp names the session before it."""
    ends.configure(GENERATE, DISCARD, rate="20 Mbit/s", interruption_timeout="1h")
    ends.remember_a_session()
    egress = await ends.egress()
    first = await ends.ingress()
    await crossed(egress, 500)
    await first.kill()
    before = (await egress.status())["received"]["records"]
    await ends.ingress()
    await crossed(egress, before + 500)
    followed = egress.logged("session_followed")
    assert [entry["reason"] for entry in followed] == ["first heard", "named the session before it"]
    assert followed[1]["previous_epoch"] == followed[0]["epoch"]
    assert not egress.logged("conflict_detected")


# Lines cross from standard input to a file on standard output, so it can be seen over restarts what arrived.


@attrs.define
class Writer:
    """Writes numbered lines to an ingress, as fast as it takes them, until told that it is enough."""

    lines: int = 0
    enough: bool = False

    async def run(self, ingress: End) -> None:
        assert ingress.process.stdin is not None
        async with trio.lowlevel.FdStream(os.dup(ingress.process.stdin.fileno())) as stdin:
            ingress.process.stdin.close()
            while not self.enough:
                numbers = range(self.lines, self.lines + 100)
                await stdin.send_all("".join(f"{number:>90}\n" for number in numbers).encode())
                self.lines += 100


def arrived_lines(path: Path) -> list[int]:
    *lines, rest = path.read_text().split("\n")
    assert rest == ""
    assert {len(line) for line in lines} == {90}
    return [int(line) for line in lines]


def lost_records(*ends: End) -> list[int]:
    """The numbers of the records that the logs call lost: lines are numbered like records."""
    lost = []
    for end in ends:
        for entry in end.logged("records_lost"):
            numbers = [number for first, last in entry["ranges"] for number in range(first, last + 1)]
            assert len(numbers) == entry["count"]
            lost += numbers
    return lost


@pytest.mark.req("GC-DLV-11", "GC-DLV-18", "GC-SESS-9")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_egress_that_is_stopped_and_started_again(ends: Ends, number: signal.Signals) -> None:
    """Every line arrived once, or is reported as lost. Only what a kill hit may be both."""
    # Without a spool, which could deliver twice what a slow machine accepted directly before the kill.
    ends.configure('type = "stdin"', 'type = "stdout"', "max_bytes = 0", rate="4 Mbit/s", batch_bytes="2 KiB")
    ends.remember_a_session()
    out, writer = ends.directory / "out.txt", Writer()
    async with trio.open_nursery() as nursery:
        first = await ends.egress(stdout=out)
        ingress = await ends.ingress(stdin=subprocess.PIPE)
        nursery.start_soon(writer.run, ingress)
        await crossed(first, 2_000)
        first.process.send_signal(number)
        assert await first.ended() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        at_the_end = len(arrived_lines(out))
        second = await ends.egress(stdout=out)
        await crossed(second, 1_000)
        writer.enough = True
        assert await ingress.ended() == 0, "at the end of its input"
        ended = await second.wait_logged("session_ended")
        assert ended["records_sent"] == writer.lines
        await second.until(lambda: writer.lines - 1 in arrived_lines(out), "the last line has arrived")
        assert await second.stop() == 0

    arrived, lost = arrived_lines(out), lost_records(first, second)
    assert arrived == sorted(set(arrived)), "in order, and nothing twice"
    assert len(lost) == len(set(lost))
    assert set(arrived) | set(lost) == set(range(writer.lines))
    both = set(arrived) & set(lost)
    if number == signal.SIGTERM:
        assert not both
    else:
        assert both <= set(arrived[:at_the_end]), "delivered just before it was killed"
    (resumed,) = second.logged("session_followed")
    assert resumed["reason"] == "resumed from stored state"
    assert {entry["cause"] for entry in second.logged("records_lost")} <= {"while_away", "gap"}
    assert second.total("messages_lost", cause="while_away") > 0


async def test_files_survive_a_killed_ingress(ends: Ends) -> None:
    """A file that was on its way is sent again, as a whole."""
    there, here = ends.directory / "there", ends.directory / "here"
    there.mkdir()
    here.mkdir()
    source, sink = f'type = "files"\ndirectory = "{there}"\nsettle = "0s"', f'type = "files"\ndirectory = "{here}"'
    ends.configure(source, sink, rate="30 Mbit/s")
    ends.remember_a_session()
    contents = {"large.bin": bytes(range(256)) * 16_000, "small.txt": b"small"}
    for name, content in contents.items():
        (there / name).write_bytes(content)
    egress = await ends.egress()
    first = await ends.ingress()
    await egress.until_status(lambda s: s["received"]["bytes"] > 1_000_000, "a part of the file has arrived")
    await first.kill()
    assert not (here / "large.bin").exists()
    second = await ends.ingress()
    await egress.until(lambda: (here / "large.bin").exists() and (here / "small.txt").exists(), "both files are there")
    assert await second.stop() == 0
    assert await egress.stop() == 0
    found = {
        path.name: path.read_bytes() for path in here.iterdir() if path.is_file() and not path.name.startswith(".")
    }
    assert found == contents


@pytest.mark.req("GC-DLV-12", "GC-DLV-13")
async def test_a_lossy_gap_is_counted_to_the_datagram(ends: Ends) -> None:
    """A relay that drops, damages and reorders stands between the two: both say the same of what is missing."""
    counts = GapCounts()
    plan = FaultPlan(drop=0.01, reorder=0.02, corrupt=0.005, seed=3)
    target = ends.address
    ends.address = ends.free_address()
    link: dict[str, Any] = {"rate": "50 Mbit/s", "batch_bytes": "8 KiB", "bind": str(target), "fec": {"repair": "0%"}}
    ends.configure(f"{GENERATE}\ncount = 20000", DISCARD, **link)
    ends.remember_a_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(relay, ends.address, target, plan, counts)
        egress = await ends.egress()
        ingress = ends.start("ingress")
        assert await ingress.ended() == 0
        await egress.wait_logged("session_ended")
        nursery.cancel_scope.cancel()
    status = await egress.until_status(
        lambda s: s["received"]["records"] + s["missed"]["records"] == 20_000, "every record is accounted for"
    )
    assert await egress.stop() == 0
    received, missed = status["received"], status["missed"]
    assert counts.dropped > 20
    assert counts.corrupted > 10
    assert missed["kernel_drops"] == counts.kernel_dropped == 0
    assert received["datagrams"] == counts.forwarded
    assert missed["datagrams"] == counts.dropped + counts.corrupted
    assert sum(status["dropped"].values()) == counts.corrupted
    assert status["dropped"].keys() <= {"bad_check", "bad_magic", "unsupported_version", "wrong_security_mode"}
    assert received["datagrams"] - sum(status["dropped"].values()) + missed["datagrams"] == counts.received
    facts = undamaged(status)
    assert facts["missing"] == missed["records"] > 0
    assert missed["messages"].keys() == {"gap"}
    assert egress.total("messages_lost") == missed["messages"]["gap"]
    assert egress.total("records_lost") == missed["records"]
    assert received["messages"] + missed["messages"]["gap"] == status["announced"]["messages"]
