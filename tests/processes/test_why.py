"""Where datagrams vanish between two real processes, as `gapconn why` tells it; and who else sends to an egress."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from gapconn.pair_file import load_pair
from gapconn.testing.gap import FaultPlan, GapCounts, GapSwitch, relay
from gapconn.why.command import as_json, ask
from tests.processes.ends import End, Ends

# Each message is one burst of six datagrams, so that the kernel joins no more than these.
GENERATE = 'type = "generate"\nsize_bytes = 8000\nrate = "8 Mbit/s"'
LINK: dict[str, Any] = {
    "rate": "40 Mbit/s",
    "batch_bytes": "8 KiB",
    "interruption_timeout": "1h",  # nobody is to be called silent, however slow this machine is
    "fec": {"repair": "0%"},
}


async def why(ends: Ends, egress: End, ingress: End | None = None) -> dict[str, Any]:
    """What the command says, for programs."""
    pair = load_pair(ends.file, {}, link_only=True)
    there, here = await egress.admin(), await ingress.admin() if ingress is not None else None
    answer = await trio.to_thread.run_sync(
        lambda: ask(attrs.evolve(pair, admin=None), egress_at=there, ingress_at=here)
    )
    facts: dict[str, Any] = json.loads(as_json(answer))
    return facts


async def why_as_a_process(ends: Ends, egress: End) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "gapconn", "why", str(ends.file), "--egress", str(await egress.admin())]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL)
    return done.stdout.decode()


def places(facts: dict[str, Any]) -> list[str]:
    return [finding["place"] for finding in facts["findings"]]


def kernel_drops(port: int) -> int:
    """What the kernel has dropped at the socket of this port."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(fields[-1]) for fields in lines if int(fields[1].partition(":")[2], 16) == port)


async def test_a_stopped_egress_with_a_small_receive_buffer(ends: Ends) -> None:
    ends.configure(GENERATE, 'type = "discard"', receive_buffer_bytes="64 KiB", **LINK)
    ends.remember_a_session()
    egress = await ends.egress()
    ingress = await ends.ingress()
    before = await egress.until_status(lambda s: s["received"]["datagrams"] > 300, "data flows")
    assert before["missed"]["datagrams"] == before["losses"]["missed_here"]
    egress.process.send_signal(signal.SIGSTOP)
    try:
        await ingress.until(lambda: kernel_drops(ends.address.port) > 20, "the kernel has dropped something")
    finally:
        egress.process.send_signal(signal.SIGCONT)
    await egress.until_status(lambda s: s["missed"]["datagrams"] > 20, "the hole has shown")
    with_both = await why(ends, egress, ingress)
    assert with_both["datagrams"]["egress_kernel"] == with_both["datagrams"]["missed"] > 20
    assert with_both["unseen"] == []
    assert await ingress.stop() == 0
    ended = await egress.wait_logged("session_ended")
    status = await egress.until_status(
        lambda s: ended["messages_sent"] == s["received"]["messages"] + sum(s["missed"]["messages"].values()),
        "all messages are delivered or lost",
    )
    facts = await why(ends, egress)
    datagrams = facts["datagrams"]
    assert datagrams["egress_kernel"] == datagrams["missed"] == status["missed"]["datagrams"] > 20
    assert sum(count for place, count in datagrams.items() if place != "missed") == datagrams["missed"]
    assert f"{datagrams['missed']:,}  dropped by the kernel of the egress's host" in await why_as_a_process(
        ends, egress
    )
    found = facts["findings"][0]
    assert (found["place"], found["level"], found["count"]) == ("egress-kernel", "loss", datagrams["missed"])
    granted = status["receive_buffer_bytes"]
    assert facts["verdict"] == found["what"]
    assert f"because the receive buffer of {granted // 1024} KiB was full" in found["what"]
    assert facts["journal"]["gap"]["messages"] == status["missed"]["messages"]["gap"]
    assert any("the ingress: " in words for words in facts["unseen"])


async def test_a_gap_that_drops_and_damages(ends: Ends) -> None:
    ends.configure(GENERATE, 'type = "discard"', **LINK)
    ends.remember_a_session()
    target = ends.free_address()
    counts, switch = GapCounts(), GapSwitch()
    async with trio.open_nursery() as nursery:
        plan = FaultPlan(drop=0.04, corrupt=0.04, seed=11)
        await nursery.start(lambda task_status: relay(
            ends.address, target, plan, counts, switch=switch, task_status=task_status
        ))  # fmt: skip
        egress = await ends.egress(environ={"GAPCONN_LINK_BIND": str(target)})
        ingress = await ends.ingress()
        await ingress.until(lambda: counts.dropped > 40 and counts.corrupted > 40, "the gap has done enough")
        switch.toggle_faults()  # a hole at the very end would not show
        calm = counts.forwarded
        await ingress.until(lambda: counts.forwarded > calm + 50, "what came behind has passed")
        assert await ingress.stop() == 0
        await egress.wait_logged("session_ended")
        nursery.cancel_scope.cancel()
    facts = await why(ends, egress)
    assert counts.kernel_dropped == 0
    datagrams = facts["datagrams"]
    # The counters of the loopback are of all programs on this host: others may make it drop just now.
    link = datagrams["link"] + datagrams["egress_interface"]
    assert (datagrams["unreadable"], link) == (counts.corrupted, counts.dropped)
    assert datagrams["missed"] == counts.corrupted + counts.dropped
    assert {"link", "unreadable"} <= set(places(facts))
    status = await egress.status()
    (damaged,) = [each for each in facts["findings"] if each["place"] == "unreadable"]
    assert (damaged["level"], damaged["count"]) == ("loss", counts.corrupted)
    assert f"bad_check {status['dropped']['bad_check']}" in damaged["what"]
    assert status["heard_from"] in damaged["what"], "they came from where the others came from"


async def test_a_target_of_datagrams_where_nobody_listens(ends: Ends) -> None:
    nobody = ends.free_address()
    ends.configure(GENERATE, f'type = "udp"\nsend_to = "{nobody}"', **LINK)
    ends.remember_a_session()
    egress = await ends.egress()
    ingress = await ends.ingress()
    before = await egress.until_status(lambda s: s["sink"]["events"].get("refused", 0) > 5, "the target refuses")
    facts = await why(ends, egress, ingress)
    (found,) = [each for each in facts["findings"] if each["place"] == "sink"]
    assert (found["level"], found["unit"]) == ("loss", "datagrams")
    assert found["count"] >= before["sink"]["events"]["refused"]
    assert "nobody listens" in found["what"]


def udp_ports(end: End) -> set[int]:
    """The ports of the UDP sockets that a process has."""
    descriptors = Path(f"/proc/{end.process.pid}/fd")
    inodes = {os.readlink(path) for path in descriptors.iterdir() if "socket" in os.readlink(path)}
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {int(fields[1].partition(":")[2], 16) for fields in lines if f"socket:[{fields[9]}]" in inodes}


@pytest.mark.req("GC-SESS-8", "GC-SESS-11", "GC-SESS-12")
async def test_a_second_ingress_and_a_foreign_link(ends: Ends) -> None:
    """They are named with their addresses everywhere, and the good stream goes on untouched."""
    ends.configure(GENERATE, 'type = "discard"', **LINK)
    ends.remember_a_session()
    egress = await ends.egress()
    ingress = await ends.ingress()
    good = (await egress.until_status(lambda s: s["received"]["records"] > 50, "data flows"))["epoch"]
    rival = ends.start("ingress", environ={"GAPCONN_LINK_STATE_DIRECTORY": str(ends.directory / "rival")})
    foreign = ends.start("ingress", environ={"GAPCONN_LINK_NAME": "payments"})
    status = await egress.until_status(
        lambda s: "conflict" in s["alarms"] and "foreign_link" in {o["reason"] for o in s["losses"]["others"]},
        "both are noticed",
    )
    rival_epoch = (await rival.wait_logged("ingress_started"))["epoch"]
    foreign_id = (await foreign.wait_logged("ingress_started"))["link_id"]
    (rival_port,), (foreign_port,), (good_port,) = udp_ports(rival), udp_ports(foreign), udp_ports(ingress)
    others = {each["reason"]: each for each in status["losses"]["others"]}
    assert others["conflict"]["identity"] == rival_epoch
    assert others["conflict"]["came_from"].endswith(f":{rival_port}")
    assert others["foreign_link"]["identity"] == foreign_id
    assert others["foreign_link"]["came_from"].endswith(f":{foreign_port}")
    assert max(each["last_heard_s"] for each in others.values()) < 60
    assert status["heard_from"].endswith(f":{good_port}")
    assert f":{rival_port}) is not" in (await egress.get("/health")).text
    assert (await egress.wait_logged("conflict_detected"))["rival_from"].endswith(f":{rival_port}")
    assert (await egress.wait_logged("foreign_link_detected"))["came_from"].endswith(f":{foreign_port}")
    metrics = (await egress.get("/metrics")).text
    for name in ("gapconn_link_conflict", "gapconn_link_foreign"):
        assert re.search(rf"^{name}\{{.*\}} 1\.0$", metrics, re.MULTILINE)
    page = (await egress.get("/")).text
    facts = await why(ends, egress, ingress)
    for place, port in (("conflict", rival_port), ("foreign-link", foreign_port)):
        (found,) = [each for each in facts["findings"] if each["place"] == place]
        assert f":{port} (" in found["what"]
        assert f":{port} (" in page
        assert found["level"] == "alarm"
    await rival.kill()
    await foreign.kill()
    before = await egress.status()
    after = await egress.until_status(
        lambda s: s["received"]["records"] > before["received"]["records"] + 50, "the good stream goes on"
    )
    assert after["epoch"] == good
    assert egress.logged("session_followed")[1:] == []
    assert after["sink"]["missing"] == after["sink"]["damaged"] == 0
    assert after["missed"]["datagrams"] == after["missed"]["records"] == 0
