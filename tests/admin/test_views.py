"""What the two ends show: the same facts on /status and /metrics, by the conventions, in every state of a link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from gapconn.admin.egress_view import EgressView
from gapconn.admin.ingress_view import IngressView
from gapconn.admin.metrics import make_registry
from gapconn.admin.view import AdminView
from gapconn.config import Link
from gapconn.protocol.registry import DropReason, LossCause
from gapconn.sinks import Inlet
from gapconn.sources import Outlet
from tests.services import (
    STREAM,
    Session,
    Taking,
    feed,
    ingress,
    link,
    numbers,
    opened,
    running,
    socket_of,
    until,
)


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)


def families(view: AdminView) -> dict[str, Metric]:
    """What a scraper reads, in both formats; checks the form."""
    text = generate_latest(make_registry(view)).decode()
    found = {family.name: family for family in parse(text)}
    openmetrics = generate_openmetrics(make_registry(view)).decode()  # type: ignore[no-untyped-call]  # typed in part
    parsed = list(parse_openmetrics(openmetrics))  # type: ignore[no-untyped-call]  # as above
    ours = [family for family in parsed if family.name.startswith("gapconn_")]
    assert len(ours) > 5
    assert {sample.name for family in ours for sample in family.samples} == {
        sample.name for family in found.values() for sample in family.samples if sample.name.startswith("gapconn_")
    }
    for family in ours:
        check_form(family)
        for sample in family.samples:
            assert sample.labels["link"] == view.link
            assert sample.labels["role"] == view.role
    return found


def check_form(family: Metric) -> None:
    """The naming conventions of Prometheus, as promtool checks them."""
    name = family.name  # of a counter: without _total
    assert re.fullmatch(r"gapconn_[a-z][a-z_]*[a-z]", name), name
    assert family.type in {"counter", "gauge"}
    assert family.documentation
    assert family.documentation[-1] == "."
    assert not re.search(r"_(total|counter|gauge|count|sum|bucket|info_total)$", name), name
    assert not re.search(r"(milli|micro|nano|kilo|mega|_ms|_kb|_mb|bits|minutes|hours)", name), f"base units: {name}"
    if re.search(r"seconds|bytes", name):
        assert re.search(r"_(seconds|bytes)$", name), f"the unit is last: {name}"
    for sample in family.samples:
        assert (family.type == "counter") == sample.name.endswith("_total")
        if family.type == "counter":
            assert sample.value >= 0
        assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels)
        assert not {"le", "quantile", "job", "instance"} & sample.labels.keys()


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """Of the only sample of that name that has these labels."""
    family = found[name.removesuffix("_total")] if name.removesuffix("_total") in found else found[name]
    (sample,) = [s for s in family.samples if labels.items() <= s.labels.items() and s.name == name]
    return float(sample.value)


def by(found: dict[str, Metric], name: str, label: str) -> dict[str, float]:
    """The values of a family that are not zero, by one label."""
    family = found[name.removesuffix("_total")]
    return {sample.labels[label]: sample.value for sample in family.samples if sample.value and label in sample.labels}


def plain(view: AdminView) -> dict[str, Any]:
    """/status, as it is sent."""
    status: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(view.status(), enc_hook=str))
    return status


# Egress


def agree_bodies(status: dict[str, Any], found: dict[str, Metric]) -> None:
    bodies = status["bodies"]
    assert value(found, "gapconn_body_bytes_total") == bodies["bytes"]
    assert value(found, "gapconn_plain_body_bytes_total") == bodies["plain_bytes"]
    assert bodies["ratio"] == (
        pytest.approx(bodies["plain_bytes"] / bodies["bytes"], abs=0.01) if bodies["bytes"] else None
    )


def agree_egress(view: EgressView) -> None:
    """Everything that is on both pages is the same on both."""
    status, found = plain(view), families(view)
    missed, received = status["missed"], status["received"]
    assert value(found, "gapconn_session_epoch") == status["epoch"]
    assert value(found, "gapconn_link_up") == (status["state"] == "following")
    assert value(found, "gapconn_link_interrupted") == ("link_interrupted" in status["alarms"])
    assert value(found, "gapconn_link_conflict") == ("conflict" in status["alarms"])
    assert value(found, "gapconn_datagrams_received_total") == received["datagrams"]
    assert value(found, "gapconn_received_bytes_total") == received["bytes"]
    assert value(found, "gapconn_messages_received_total") == received["messages"]
    assert value(found, "gapconn_records_received_total") == received["records"]
    agree_bodies(status, found)
    assert value(found, "gapconn_datagrams_missed") == missed["datagrams"]
    places = by(found, "gapconn_datagrams_missed_by_place", "place")
    assert sum(places.values()) == status["why"]["datagrams"]["missed"] == missed["datagrams"]
    assert places.items() <= status["why"]["datagrams"].items()
    assert status["losses"]["dropped"] == status["dropped"]
    recent_s = status["losses"]["interruption_timeout_s"]
    heard = {each["reason"] for each in status["losses"]["others"] if each["last_heard_s"] <= recent_s}
    assert value(found, "gapconn_link_foreign") == ("foreign_link" in heard)
    assert value(found, "gapconn_records_lost_total") == missed["records"] + missed["refused_records"]
    assert value(found, "gapconn_records_duplicate_total") == status["duplicate_records"]
    assert value(found, "gapconn_sink_held_bytes") == status["held"]["sink_bytes"]
    assert value(found, "gapconn_reassembly_held_bytes") == status["held"]["incomplete_bytes"]
    assert by(found, "gapconn_datagrams_dropped_total", "reason") == status["dropped"]
    lost = {
        name: count
        for name in {*missed["messages"], *missed["refused_messages"]}
        if (count := missed["messages"].get(name, 0) + missed["refused_messages"].get(name, 0))
    }
    assert by(found, "gapconn_messages_lost_total", "cause") == lost
    assert by(found, "gapconn_sink_losses_total", "reason") == missed["sink_losses"]
    assert by(found, "gapconn_sink_events_total", "event") == status["sink"]["events"]
    assert status["losses"]["sink_events"] == status["sink"]["events"]
    reasons = {s.labels["reason"] for s in found["gapconn_datagrams_dropped"].samples}
    assert reasons == {reason.name.lower() for reason in DropReason}, (
        "also those that are 0, so that they can be watched"
    )
    causes = {s.labels["cause"] for s in found["gapconn_messages_lost"].samples}
    assert causes == {cause.name.lower() for cause in LossCause}
    assert bool(view.health()) == bool(status["alarms"])


async def test_an_egress_in_every_state(tmp_path: Path) -> None:
    way = link(
        tmp_path,
        heartbeat_interval=0.2,
        message_bytes_max=65_536,
        sink_buffer_bytes=65_536,
        reassembly_bytes_max=131_072,
    )
    sink = Taking(going=trio.Event())
    session, rival, foreign = Session(way), Session(way, epoch=9, previous_epoch=8), Session(link(tmp_path, id=5))
    states: list[str] = []
    async with opened(way, sink) as egress:
        view = EgressView(egress)

        def look() -> None:
            agree_egress(view)
            states.append(plain(view)["state"])

        look()  # before it runs
        egress.context.counters['odd "name"\n'] += 3
        egress.context.status["odd"] = {"a": b"bytes", "b": Path("/x")}
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await until(lambda: bool(view.health()))
                look()
                await feed(egress, [*session.start, b"", b"?" * 60, *foreign.start])
                look()
                await feed(egress, session.numbers((0, 10)))
                session.numbers((10, 5))  # lost
                for first in range(15, 65):
                    await feed(egress, session.batch(numbers(first, size_bytes=10_000)))
                await until(lambda: bool(egress.events.refused))
                await feed(egress, session.heartbeat() + rival.start + session.heartbeat())
                egress.events.sink_lost(stream=STREAM, first=1, last=2, reason="too large")
                look()
                assert set(plain(view)["alarms"]) == {"conflict"}
                await feed(egress, session.stop())
                look()
                egress.stop()
                assert sink.going is not None
                sink.going.set()
        look()
    look()  # after everything was closed
    assert states[:3] == ["waiting", "interrupted", "following"]
    assert states[-1] == "closed"
    status = plain(view)
    assert status["missed"]["messages"] == {"gap": 1}
    assert status["missed"]["records"] == 5
    assert status["missed"]["datagrams"] == 1
    assert status["missed"]["refused_messages"]["refused"] > 0
    assert status["dropped"].keys() == {"too_short", "bad_magic", "foreign_link", "conflict"}
    assert status["announced"] is not None


async def test_what_was_announced_is_shown_beside_what_was_received(way: Link) -> None:
    session = Session(way)
    async with running(way, Taking()) as egress:
        view = EgressView(egress)
        assert plain(view)["announced"] is None
        await feed(egress, session.start + session.numbers((0, 10)) + session.heartbeat())
        status = plain(view)
        # The second message sums up the positions.
        assert status["announced"] == {"messages": 2, "records": 10, "filtered": 0}
        assert (status["received"]["messages"], status["received"]["records"]) == (2, 10)
        assert status["recent_events"][0]["event"] == "session_followed"


async def test_recent_events_are_bounded(way: Link) -> None:
    async with running(way, Taking()) as egress:
        for i in range(500):
            egress.events.sink_lost(stream=f"s{i}", first=0, last=0, reason="x")
        egress.events.tell_all()
        assert len(plain(EgressView(egress))["recent_events"]) == 100


async def test_a_sink_shows_its_own_facts(way: Link) -> None:
    """Also one that counts and says what nobody expects."""

    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            delivery.accept()

    async with running(way, sink) as egress:
        egress.context.counters["retries"] += 2
        egress.context.status["brokers"] = ["a:1"]
        shown = plain(EgressView(egress))["sink"]
        assert shown == {"type": "function", "events": {"retries": 2}, "brokers": ["a:1"]}
        agree_egress(EgressView(egress))


# Ingress


def agree_ingress(view: IngressView) -> None:
    status, found = plain(view), families(view)
    sent = status["sent"]
    assert value(found, "gapconn_session_epoch") == status["epoch"]
    assert value(found, "gapconn_datagrams_sent_total") == sent["datagrams"]
    assert value(found, "gapconn_sent_bytes_total") == sent["bytes"]
    assert value(found, "gapconn_messages_sent_total") == sent["messages"]
    assert value(found, "gapconn_records_sent_total") == sent["records"]
    assert value(found, "gapconn_heartbeats_sent_total") == sent["heartbeats"]
    agree_bodies(status, found)
    assert value(found, "gapconn_send_stalls_total") == status["send_stalls"]
    assert by(found, "gapconn_source_events_total", "event") == status["source"]["events"]
    assert value(found, "gapconn_ready") == (not view.ready())
    assert value(found, "gapconn_healthy") == (not view.health())


async def test_an_ingress_in_every_state(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    way = link(tmp_path)

    async def source(outlet: Outlet) -> None:
        for first in range(0, 50, 10):
            await outlet.send(numbers(first, 10))
        await trio.sleep_forever()

    end = ingress(way, source, known=False)
    view = IngressView(end)
    seen: list[tuple[str, list[str]]] = []

    def look() -> None:
        agree_ingress(view)
        seen.append((plain(view)["state"], view.ready()))

    look()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await trio.sleep(way.interruption_timeout_s / 2)
            look()
            await trio.sleep(way.interruption_timeout_s)
            end.context.counters["polls"] += 1
            look()
            assert plain(view)["sent"]["records"] == 50
            end.stop()
            look()
    look()
    assert seen == [
        ("new", ["the session is new"]),
        ("announcing", ["the session is announcing"]),
        ("active", []),
        ("active", ["it was asked to stop"]),
        ("closed", ["the session is closed"]),
    ]
    assert plain(view)["sent"]["datagrams"] == len(socket_of(end).sent)


async def test_a_page_says_which_end_it_is(way: Link) -> None:
    async def nothing(port: object) -> None:
        await trio.sleep_forever()

    sending: AdminView = IngressView(ingress(way, nothing))
    assert plain(sending)["sends_to"] == "127.0.0.1:7400"
    async with opened(way, nothing) as egress:
        receiving: AdminView = EgressView(egress)
        assert plain(receiving)["listens_on"] == str(egress.socket.address)
        for view, role in ((sending, "ingress"), (receiving, "egress")):
            status = plain(view)
            assert (status["role"], status["link"], status["link_id"]) == (role, "orders", way.id)
            assert (view.role, view.link) == (role, "orders")
