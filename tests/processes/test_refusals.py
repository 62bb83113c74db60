"""One ingress, one egress: what must not be is refused with a reason, or noticed and kept away from the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.ends import Ends

GENERATE = 'type = "generate"\nsize_bytes = 500'
DISCARD = 'type = "discard"'


@pytest.mark.req("GC-SESS-8", "GC-SESS-11", "GC-SESS-12", "GC-MOD-1")
async def test_others_on_a_link_are_refused_or_alarmed_and_do_no_harm(ends: Ends) -> None:
    ends.configure(GENERATE, DISCARD, rate="10 Mbit/s", interruption_timeout="3s")
    ends.remember_a_session()
    ends.remember_a_session("elsewhere")
    elsewhere = {"GAPCONN_LINK_STATE_DIRECTORY": str(ends.directory / "elsewhere")}
    egress = await ends.egress()
    ingress = await ends.ingress()
    epoch = (await ingress.status())["epoch"]

    # What a program can see itself, it refuses. They are started at once, to save time.
    second_ingress = ends.start("ingress")
    other_egress = ends.start("egress", environ=elsewhere)
    # What only the egress can see, it alarms.
    rival = ends.start("ingress", environ=elsewhere)
    foreign = ends.start("ingress", environ={"GAPCONN_LINK_NAME": "invoices"})

    for end, reason in (
        (second_ingress, "another ingress of link 'orders'"),
        (other_egress, f"cannot listen on {ends.address}: Address already in use"),
    ):
        assert await end.ended() == 1
        (failure,) = end.logged("stopped_by_failure")
        assert failure["level"] == "error"
        assert reason in failure["reason"]

    conflict = await egress.wait_logged("conflict_detected")
    assert conflict["epoch"] == epoch < conflict["rival_epoch"]
    alarm = await egress.until_healthy(False)
    assert "two ingresses send on this link" in alarm.json()["problems"][0]
    told = await egress.wait_logged("foreign_link_detected")
    assert told["link_id"] == (await foreign.status())["link_id"]
    assert "link.address" in told["remedy"]

    # Blind as they are, they send data, and none of it counts.
    status = await egress.until_status(
        lambda s: s["dropped"].get("conflict", 0) > 200 and s["dropped"].get("foreign_link", 0) > 3,
        "what the others send is dropped",
    )
    assert status["epoch"] == epoch
    assert await rival.stop() == 0
    assert await foreign.stop() == 0
    await egress.until_healthy(True)
    assert egress.logged("conflict_cleared")
    assert await ingress.stop() == 0
    ended = await egress.wait_logged("session_ended")
    status = await egress.until_status(lambda s: s["state"] == "closed", "the session is over")
    facts = status["sink"]
    assert (facts["damaged"], facts["duplicates"], facts["missing"]) == (0, 0, 0)
    assert facts["verified"] == ended["records_sent"], "all of the one, and nothing of the others"
    assert [entry["epoch"] for entry in egress.logged("session_followed")] == [epoch]
    assert await egress.stop() == 0


@pytest.mark.parametrize("role", ["ingress", "egress"])
async def test_a_wrong_configuration(ends: Ends, role: str) -> None:
    ends.configure(GENERATE + "\nsizebytes = 1", 'type = "discard"\nport = 1', mtu_bites=1500)
    end = ends.start(role)
    assert await end.ended() == 2
    section = "source.sizebytes" if role == "ingress" else "sink.port"
    for key in ("link.mtu_bites", section):
        assert any(f"{ends.file}: {key}: " in line for line in end.lines), end.lines
    assert any("mtu_bytes" in line for line in end.lines), "the nearest key is suggested"
    assert not (ends.directory / "state").exists()


# Plugins of others, found by an entry point

PLUGIN = """
import attrs
from gapconn.errors import SinkError
from gapconn.plugins import Carries

@attrs.frozen
class Config:
    pass

class Source:
    Config = Config
    carries = Carries.RECORDS

    def __init__(self, config, context):
        pass

    async def run(self, outlet):
        raise ZeroDivisionError("a bug in a plugin")

class Sink:
    Config = Config
    accepts = frozenset({Carries.RECORDS})

    def __init__(self, config, context):
        pass

    async def run(self, inlet):
        raise SinkError("the target has vanished")
"""


@pytest.fixture
def plugin(ends: Ends, tmp_path: Path) -> None:
    """A package with a source and a sink, as if it were installed."""
    site = tmp_path / "site"
    metadata = site / "others_plugin-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "others_plugin.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: others-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[gapconn.sources]\nothers = others_plugin:Source\n[gapconn.sinks]\nothers = others_plugin:Sink\n"
    )
    ends.environ["PYTHONPATH"] = str(site)


@pytest.mark.usefixtures("plugin")
async def test_a_plugin_that_fails_ends_its_process_with_the_reason(ends: Ends) -> None:
    ends.configure('type = "others"', 'type = "others"')
    ends.remember_a_session()
    ingress, egress = ends.start("ingress"), ends.start("egress")
    assert await ingress.ended() == 1
    (bug,) = ingress.logged("stopped_by_bug")
    assert bug["level"] == "error"
    assert "ZeroDivisionError: a bug in a plugin" in bug["exception"]
    assert "others_plugin.py" in bug["exception"], "it can be seen where"
    assert await egress.ended() == 1
    (failure,) = egress.logged("stopped_by_failure")
    assert failure["reason"] == "the target has vanished"
