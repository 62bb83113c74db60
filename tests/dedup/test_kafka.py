"""The service with a real broker, inside this process: what passes, what raises alarms, what ends it.

What takes processes (kills, restarts of a broker) is in tests/processes/test_dedup.py.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from gapconn.dedup.config import load_dedup
from gapconn.dedup.service import DedupService
from gapconn.dedup.view import DedupView
from gapconn.errors import DedupError
from tests.dedup.traffic import copies, dedup_file, read_until, topics, values
from tests.kafka.cluster import Cluster, Entry
from tests.processes.ends import LIMIT_S, POLL_S

pytestmark = pytest.mark.kafka


def a_service(directory: Path, text: str) -> DedupService:
    path = directory / "dedup.toml"
    path.write_text(text)
    return DedupService(load_dedup(path, {}))


@asynccontextmanager
async def running(service: DedupService) -> AsyncIterator[None]:
    """Let it run until the end of the block, and stop it in order."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        yield
        service.stop()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = trio.current_time() + LIMIT_S
    while not condition():
        assert trio.current_time() < deadline_s, f"not within {LIMIT_S:g} s: {what}"
        await trio.sleep(POLL_S)


async def test_without_waiting_the_first_copy_passes_and_a_late_one_is_marked(tmp_path: Path, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    service = a_service(tmp_path, dedup_file(kafka.address, inputs, output))
    async with running(service):
        kafka.send(inputs[0], copies([0, 1, 4], partition=0))
        await read_until(kafka, output, lambda entries: len(entries) == 3)
        kafka.send(inputs[1], copies([0, 1, 2, 3, 4, 5], partition=0))
        entries = await read_until(kafka, output, lambda entries: len(entries) == 6)
    assert values(entries) == {0: [0, 1, 4, 2, 3, 5]}
    late = [int(entry.value or b"") for entry in entries if ("gapconn-late", b"1") in (entry.headers or [])]
    assert late == [2, 3]
    assert service.kafka is not None
    assert service.kafka.totals.late == 2


async def test_a_silent_link_raises_the_alarm_and_is_said_to_be_back(tmp_path: Path, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    service = a_service(tmp_path, dedup_file(kafka.address, inputs, output, dedup='silent_after = "1s"'))
    view = DedupView(service)
    with structlog.testing.capture_logs() as log:
        async with running(service):
            for topic in inputs:
                kafka.send(topic, copies(range(10), partition=0))
            await until(lambda: all(service.book.links[link].records == 10 for link in "ab"), "both links bring data")
            # On a busy machine one link may have looked silent already.
            await until(lambda: not view.health(), "no alarm stands")
            assert view.ready() == []
            kafka.send(inputs[0], copies(range(10, 15), partition=0))
            await until(lambda: bool(view.health()), "the alarm is raised")
            assert "link b has delivered nothing" in view.health()[0]
            links = view.status()["links"]
            assert links["b"]["alarms"] == ["link_silent"]
            assert links["b"]["lag_offsets"] == 5
            assert links["a"]["alarms"] == []
            alarms = next(family for family in view.metrics() if family.name == "gapconn_dedup_input_alarm")
            assert {sample.labels["input"]: sample.value for sample in alarms.samples} == {"a": 0, "b": 1}
            kafka.send(inputs[1], copies(range(10, 15), partition=0))
            await until(lambda: not view.health(), "the alarm is over")
    told = [(each["event"], each["input"]) for each in log if each["event"].startswith("link_")]
    assert ("link_silent", "b") in told
    assert told[-1] == ("link_recovered", "b")
    assert values(kafka.read(output)) == {0: list(range(15))}


async def test_a_second_instance_takes_over_and_the_first_one_can_write_no_more(tmp_path: Path, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    text = dedup_file(kafka.address, inputs, output)
    first, second = a_service(tmp_path, text), a_service(tmp_path, text)
    fenced: list[DedupError] = []

    async def run_first() -> None:
        try:
            await first.run()
        except DedupError as error:
            fenced.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_first)
        kafka.send(inputs[0], copies(range(10), partition=0))
        await read_until(kafka, output, lambda entries: len(entries) == 10)
        async with running(second):
            await until(lambda: second.kafka is not None and not second.kafka.problem, "it took over")
            kafka.send(inputs[1], copies(range(20), partition=0))
            await until(lambda: bool(fenced), "the first one ends")
            entries = await read_until(kafka, output, lambda entries: len(entries) >= 20)
    assert "has taken over" in str(fenced[0])
    assert values(entries) == {0: list(range(20))}


async def test_topics_that_fit_are_found_also_later_and_written_to_those_of_their_name(
    tmp_path: Path, kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gapconn.dedup.kafka.DISCOVERY_INTERVAL_S", 0.5)
    mark = kafka.name()
    for topic in (f"{mark}-x", f"a-{mark}-x", f"b-{mark}-x"):
        kafka.create_topic(name=topic)
    inputs = [f"a-{mark}-{{topic}}", f"b-{mark}-{{topic}}"]
    service = a_service(tmp_path, dedup_file(kafka.address, inputs, f"{mark}-{{topic}}", name=mark))
    async with running(service):
        for link in "ab":
            kafka.send(f"{link}-{mark}-x", copies(range(5), partition=0, source="x"))
        await read_until(kafka, f"{mark}-x", lambda entries: len(entries) == 5)
        for link in "ab":
            kafka.create_topic(name=f"{link}-{mark}-y")
            kafka.send(f"{link}-{mark}-y", copies(range(3), partition=0, source="y"))
        view = DedupView(service)
        await until(lambda: any(f"{mark}-y" in problem for problem in view.ready()), "a topic is missing")
        kafka.create_topic(name=f"{mark}-y")
        entries = await read_until(kafka, f"{mark}-y", lambda entries: len(entries) >= 3)
    assert values(entries) == {0: [0, 1, 2]}
    assert values(kafka.read(f"{mark}-x")) == {0: [0, 1, 2, 3, 4]}
    assert service.context.counters["topic_missing"] >= 1


async def test_by_content_copies_are_known_over_a_restart(tmp_path: Path, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    text = dedup_file(kafka.address, inputs, output, dedup='identity = "hash"')
    async with running(a_service(tmp_path, text)):
        kafka.send(inputs[0], copies(range(50), partition=1, origin=False))
        await read_until(kafka, output, lambda entries: len(entries) == 50)
    async with running(a_service(tmp_path, text)):
        kafka.send(inputs[1], copies(range(60), partition=1, origin=False))
        entries = await read_until(kafka, output, lambda entries: len(entries) >= 60)
    assert values(entries) == {1: list(range(60))}


async def test_what_cannot_go_on_ends_it_and_says_why(tmp_path: Path, kafka: Cluster) -> None:
    inputs, output = topics(kafka)
    kafka.send(inputs[0], copies([0], partition=0, origin=False))
    failing = a_service(tmp_path, dedup_file(kafka.address, inputs, output, dedup='unidentified = "fail"'))
    with pytest.raises(DedupError, match=f"the record at {inputs[0]}, partition 0, offset 0 has no id"):
        await failing.run()
    async with running(a_service(tmp_path, dedup_file(kafka.address, inputs, output))):
        await read_until(kafka, output, lambda entries: len(entries) == 1)
    other = a_service(tmp_path, dedup_file(kafka.address, inputs, output, dedup='identity = "hash"'))
    with pytest.raises(DedupError, match="holds a state of another kind"):
        await other.run()
    kafka.configure_topic(output, max_message_bytes="2000")
    kafka.send(inputs[1], [Entry(value=random.Random(1).randbytes(5000), headers=[("gapconn-origin", b"c/t/0/1")])])
    with pytest.raises(DedupError, match="rejects a record of 5000 bytes"):
        await a_service(tmp_path, dedup_file(kafka.address, inputs, output)).run()


async def test_copies_that_were_deleted_before_they_were_read_are_told_and_the_other_link_has_them(
    tmp_path: Path, kafka: Cluster
) -> None:
    inputs, output = topics(kafka)
    text = dedup_file(kafka.address, inputs, output)
    kafka.send(inputs[0], copies(range(5), partition=0))
    async with running(a_service(tmp_path, text)):
        await read_until(kafka, output, lambda entries: len(entries) == 5)
    kafka.send(inputs[0], copies(range(5, 10), partition=0))
    kafka.send(inputs[1], copies(range(10), partition=0))
    kafka.delete_before(inputs[0], 8)
    service = a_service(tmp_path, text)
    with structlog.testing.capture_logs() as log:
        async with running(service):
            entries = await read_until(kafka, output, lambda entries: len(entries) >= 10)
    [expired] = [each for each in log if each["event"] == "records_expired"]
    assert (expired["link"], expired["first_offset"], expired["last_offset"]) == ("a", 5, 7)
    assert sorted(values(entries)[0]) == list(range(10))
