"""Sealed links as an operator has them: key files made by `gapconn keygen`, and changed while data flows."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from gapconn.protocol.registry import DatagramType
from gapconn.protocol.wire import Header, encode_datagram
from gapconn.testing.gap import FaultPlan, GapCounts, relay
from tests.processes.ends import Ends
from tests.protocol.frames import ANNOUNCEMENT
from tests.protocol.sealing import OTHER_SECRET, seal

SOURCE = 'type = "generate"\nsize_bytes = 500\nrate = "2 Mbit/s"'
SINK = 'type = "discard"'


def keygen(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gapconn", "keygen", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout


def carry(from_: Path, to: Path) -> None:
    """As an operator would: beside the old file, made private, moved into its place."""
    fresh = to.with_name("carried.key")
    fresh.write_bytes(from_.read_bytes())
    fresh.chmod(0o600)
    fresh.replace(to)


class SealedEnds:
    """A link of which each end has a key file of its own."""

    def __init__(self, ends: Ends, source: str = SOURCE, **link: Any) -> None:
        self.ends = ends
        self.ingress_file = ends.directory / "ingress.key"
        self.egress_file = ends.directory / "egress.key"
        keygen(self.ingress_file)
        carry(self.ingress_file, self.egress_file)
        # Nobody is to be called silent because this machine is slow: what was lost on the way could not be told apart.
        ends.configure(
            source, SINK, **{"interruption_timeout": "1h", "rate": "10 Mbit/s", "fec": {"repair": "0%"}, **link}
        )
        ends.remember_a_session()
        self.environ = {
            role: {"GAPCONN_LINK_SECURITY_MODE": "aes-256-gcm", "GAPCONN_LINK_SECURITY_KEY_FILE": str(file)}
            for role, file in (("ingress", self.ingress_file), ("egress", self.egress_file))
        }


@pytest.fixture
def sealed(ends: Ends) -> SealedEnds:
    return SealedEnds(ends)


@pytest.mark.req("GC-SEC-4")
async def test_the_key_changes_while_data_flows_and_nothing_is_lost(sealed: SealedEnds) -> None:
    ends = sealed.ends
    egress = await ends.egress(environ=sealed.environ["egress"])
    ingress = await ends.ingress(environ=sealed.environ["ingress"])
    await egress.until_status(lambda s: s["received"]["records"] > 100 and s["security"]["heard_key"] == 1, "data")

    keygen("--add", sealed.ingress_file)
    carry(sealed.ingress_file, sealed.egress_file)
    await egress.until_status(lambda s: len(s["security"]["keys"]) == 2, "the egress has both keys")

    keygen("--use", "2", sealed.ingress_file)
    status = await egress.until_status(lambda s: s["security"]["heard_key"] == 2, "the new key is heard")
    assert (await ingress.status())["security"]["key_in_use"] == 2

    for file in (sealed.ingress_file, sealed.egress_file):
        keygen("--use", "2", file)
        keygen("--remove", "1", file)
    await egress.until_status(lambda s: list(s["security"]["keys"]) == ["2"], "the egress has forgotten the old key")
    await ingress.until_status(lambda s: list(s["security"]["keys"]) == ["2"], "the ingress too")
    before = status["received"]["records"]
    await egress.until_status(lambda s: s["received"]["records"] > before + 500, "data flows on")

    assert await ingress.stop() == 0
    await egress.wait_logged("session_ended")
    status = await egress.until_status(lambda s: s["state"] == "closed", "the session is over")
    assert (status["missed"]["datagrams"], status["missed"]["records"], status["dropped"]) == (0, 0, {})
    assert status["received"]["records"] == status["announced"]["records"]
    assert await egress.stop() == 0
    (finished,) = egress.logged("discard_finished")
    assert (finished["missing"], finished["damaged"]) == (0, 0)
    assert len(egress.logged("session_followed")) == 1, "the session went on"
    secret = sealed.ingress_file.read_text().split('"')[1]
    assert all(secret[:16] not in "\n".join(end.lines) for end in (ingress, egress))


@pytest.mark.req("GC-SEC-8")
async def test_a_wrong_key_is_said_clearly_and_put_right_while_both_run(sealed: SealedEnds) -> None:
    ends = sealed.ends
    sealed.egress_file.unlink()
    keygen(sealed.egress_file)  # made anew, not carried
    egress = await ends.egress(environ=sealed.environ["egress"])
    await ends.ingress(environ=sealed.environ["ingress"])
    told = await egress.wait_logged("unverified_detected")
    assert (told["level"], told["reason"], told["key_id"]) == ("error", "bad_check", 1)
    health = await egress.until_healthy(False)
    assert "the secret of key 1 is not the same at both ends" in health.text
    assert "gapconn keygen --show" in health.text
    status = await egress.status()
    assert "unverified" in status["alarms"]
    assert status["dropped"]["bad_check"] > 0
    assert (status["received"]["records"], status["epoch"], status["state"]) == (0, 0, "waiting")
    metrics = (await egress.get("/metrics")).text
    assert 'gapconn_link_unverified{link="orders",role="egress"} 1.0' in metrics

    carry(sealed.ingress_file, sealed.egress_file)
    await egress.until_status(lambda s: s["received"]["records"] > 100, "data arrives")
    await egress.wait_logged("unverified_cleared")
    await egress.until_healthy(True)


async def test_a_key_file_that_breaks_while_running_changes_nothing(sealed: SealedEnds) -> None:
    ends = sealed.ends
    egress = await ends.egress(environ=sealed.environ["egress"])
    await ends.ingress(environ=sealed.environ["ingress"])
    await egress.until_status(lambda s: s["received"]["records"] > 10, "data arrives")
    sealed.egress_file.chmod(0o644)
    told = await egress.wait_logged("key_file_unusable")
    assert "others may read" in told["problem"]
    sealed.egress_file.unlink()
    assert "there is no such key file" in (await egress.wait_logged("key_file_unusable", 2))["problem"]
    status = await egress.status()
    assert "there is no such key file" in status["security"]["key_file_problem"]
    assert "gapconn_key_file_unusable" in (await egress.get("/metrics")).text
    before = status["received"]["records"]
    await egress.until_status(lambda s: s["received"]["records"] > before + 100, "data flows on")
    carry(sealed.ingress_file, sealed.egress_file)
    await egress.until_status(lambda s: s["security"]["key_file_problem"] is None, "the file is good again")


@pytest.mark.req("GC-SEC-3", "GC-SEC-6")
async def test_forged_datagrams_from_the_network_move_nothing(sealed: SealedEnds) -> None:
    """Somebody who knows everything but the secret: the link id, the epoch, the format."""
    ends = sealed.ends
    egress = await ends.egress(environ=sealed.environ["egress"])
    ingress = await ends.ingress(environ=sealed.environ["ingress"])
    status = await egress.until_status(lambda s: s["received"]["records"] > 10, "data arrives")

    def control(kind: DatagramType, epoch: int) -> bytes:
        header = Header(type=kind, link_id=status["link_id"], epoch=epoch, sequence=10_000)
        return encode_datagram(header, ANNOUNCEMENT.pack())

    forged = [
        form(control(kind, epoch))
        for kind in (DatagramType.STARTUP, DatagramType.HEARTBEAT, DatagramType.SHUTDOWN)
        for epoch in (status["epoch"] - 1, status["epoch"], status["epoch"] + 1)
        for form in (bytes, lambda d: seal(d, OTHER_SECRET), lambda d: seal(d, OTHER_SECRET, 9))
    ]
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for datagram in forged * 10:
            sender.sendto(datagram, (ends.address.host, ends.address.port))
    status = await egress.until_status(lambda s: sum(s["dropped"].values()) >= 270, "all are counted")
    assert status["dropped"] == {"wrong_security_mode": 90, "bad_check": 90, "unknown_key": 90}
    assert (status["state"], status["alarms"]) == ("following", {})
    assert await ingress.stop() == 0
    await egress.until_status(lambda s: s["state"] == "closed", "the session is over")
    assert len(egress.logged("session_followed")) == len(egress.logged("session_ended")) == 1
    assert egress.logged("conflict_detected") == egress.logged("unverified_detected") == []
    assert (await egress.status())["missed"]["records"] == 0


@pytest.mark.parametrize("role", ["ingress", "egress"])
async def test_an_end_without_a_good_key_file_does_not_start(sealed: SealedEnds, role: str) -> None:
    (sealed.ingress_file if role == "ingress" else sealed.egress_file).chmod(0o640)
    end = sealed.ends.start(role, environ=sealed.environ[role])
    assert await end.ended() == 2
    (told,) = end.logged("stopped_by_failure")
    assert "others may read or change this key file (mode 0640): chmod 600" in told["reason"]


async def test_what_is_lost_or_damaged_under_a_seal_is_rebuilt(ends: Ends) -> None:
    sealed = SealedEnds(ends, 'type = "generate"\nsize_bytes = 40_000', fec={"repair": "50%"}, rate="40 Mbit/s")
    target, counts = ends.free_address(), GapCounts()
    async with trio.open_nursery() as nursery:
        faults = FaultPlan(drop=0.05, corrupt=0.02, duplicate=0.02, seed=7)
        await nursery.start(relay, ends.address, target, faults, counts)
        egress = await ends.egress(environ={**sealed.environ["egress"], "GAPCONN_LINK_BIND": str(target)})
        ingress = await ends.ingress(environ=sealed.environ["ingress"])
        status = await egress.until_status(lambda s: s["received"]["records"] >= 300, "300 records arrived")
        await ingress.kill()
        nursery.cancel_scope.cancel()
    assert (status["missed"]["messages"], status["missed"]["records"]) == ({}, 0)
    assert status["sink"]["missing"] == status["sink"]["damaged"] == 0
    assert status["received"]["messages_rebuilt"] > 0
    assert status["dropped"]["bad_check"] > 0
    assert status["dropped"]["duplicate"] > 0
    assert (status["alarms"], egress.logged("unverified_detected")) == ({}, [])
