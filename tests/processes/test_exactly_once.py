"""Both ends are killed while data flows into Kafka: in the target, as consumers see it, is each record once."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections import Counter
from typing import Any

import httpx
import pytest
import trio

from tests.kafka.cluster import Cluster
from tests.processes.ends import LIMIT_S, POLL_S, End, Ends, free_port
from tests.processes.test_resend import Topics, all_accepted, command, missing


def configure(ends: Ends, topics: Topics, *, commit_interval: str, **link: Any) -> None:
    address = topics.kafka.address
    ends.configure(
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopics = ["{topics.source}"]\n'
        f'group_id = "{topics.source}"\ncommit_interval = "{commit_interval}"\n'
        # Who is killed and comes back under this name need not wait until the group has given it up.
        f'client = {{ "group.instance.id" = "{topics.source}" }}',
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "copy-{{topic}}"\n'
        'delivery = "exactly-once"\ntransaction_interval = "50ms"',
        name=topics.source,
        **link,
    )
    ends.remember_a_session(name=topics.source)


def egress_state(ends: Ends) -> dict[str, str]:
    """Environment of an egress whose state is apart from the ingress's."""
    return {"GAPCONN_LINK_STATE_DIRECTORY": str(ends.directory / "egress-state")}


async def ledger(topics: Topics) -> dict[str, list[str]]:
    """What is not in the target exactly once."""
    found = Counter(value.decode() for _, value, _ in await topics.found())
    sent = {f"{partition}/{n}" for n in range(topics.sent) for partition in (0, 1)}
    return {
        "missing": sorted(sent - set(found)),
        "twice": sorted(value for value, count in found.items() if count > 1),
        "unknown": sorted(set(found) - sent),
    }


NOTHING_WRONG: dict[str, list[str]] = {"missing": [], "twice": [], "unknown": []}


async def settled(egress: End, topics: Topics) -> None:
    """Wait until the session has sent all records, and the sink has what arrived of them."""
    await egress.until_status(
        lambda s: (s["announced"] or {}).get("records") == 2 * topics.sent and not s["held"]["unaccepted_messages"],
        "all was sent and is settled",
    )


async def has_received(egress: End, records: int) -> None:
    await egress.until_status(lambda s: s["received"]["records"] >= records, f"{records} records arrived")


@pytest.mark.kafka
@pytest.mark.timeout(900)  # it starts many processes, one after the other
@pytest.mark.req("GC-ONCE-2", "GC-ONCE-3", "GC-ONCE-4", "GC-RPR-1")
async def test_an_egress_killed_under_load_leaves_no_record_twice_and_knows_what_is_missing(
    ends: Ends, kafka: Cluster
) -> None:
    topics = await Topics.make(kafka)
    configure(ends, topics, commit_interval="100ms", rate="400 kbit/s", interruption_timeout="30s")
    egress = await ends.egress()
    ingress = await ends.ingress()
    await topics.send(10)
    await all_accepted(egress, 20)  # of both partitions it is known now where they stand
    for life in range(2):
        await topics.send(300)
        await has_received(egress, 60 + 90 * life)
        await egress.kill()
        egress = await ends.egress()
    await topics.send(20)
    await ingress.until_status(lambda s: s["sent"]["records"] == 2 * topics.sent, "all was sent")
    await settled(egress, topics)
    found = await ledger(topics)
    assert found == {**NOTHING_WRONG, "missing": found["missing"]}

    # What the gap swallowed while nobody listened is known to the record, and crosses once.
    await missing(egress, len(found["missing"]))
    exported = await command(ends, "gaps", "export", str(ends.file), "-o", str(ends.directory / "gaps.json"))
    assert exported.returncode == 0, exported.stderr
    resent = await command(ends, "resend", str(ends.file), "--gaps", str(ends.directory / "gaps.json"))
    assert resent.returncode == 0, resent.stderr
    await egress.until_status(lambda s: s["journal"]["open_entries"] == 0, "the journal is closed")
    assert await ledger(topics) == NOTHING_WRONG


@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.req("GC-ONCE-1", "GC-ONCE-3")
async def test_an_ingress_killed_before_its_first_commit_and_an_egress_without_its_state(
    ends: Ends, kafka: Cluster
) -> None:
    topics = await Topics.make(kafka)
    configure(ends, topics, commit_interval="1000s")
    environ = egress_state(ends)
    egress = await ends.egress(environ=environ)
    ingress = await ends.ingress()
    await topics.send(200)
    await has_received(egress, 300)
    await ingress.kill()  # it has committed nothing but where it began
    ingress = await ends.ingress()
    await egress.until_status(lambda s: s["duplicate_records"] >= 300, "what it sends again is dropped")
    await topics.send(50)
    await all_accepted(egress, 500)
    await ingress.kill()
    await egress.kill()
    shutil.rmtree(ends.directory / "egress-state")
    egress = await ends.egress(environ=environ)
    ingress = await ends.ingress()
    await topics.send(50)
    await settled(egress, topics)
    assert await ledger(topics) == NOTHING_WRONG
    assert (await egress.status())["journal"]["positions_missing"] == 0


@pytest.mark.req("GC-ONCE-3")
async def test_an_egress_that_cannot_ask_its_target_says_so_and_can_be_stopped(ends: Ends) -> None:
    port = free_port(ends.host, socket.SOCK_STREAM)
    nobody = free_port(ends.host, socket.SOCK_STREAM)
    ends.configure(
        sink=f'type = "kafka"\nbootstrap_servers = "{ends.host}:{nobody}"\ndelivery = "exactly-once"',
    )
    egress = ends.start("egress", environ={"GAPCONN_ADMIN_LISTEN": f"{ends.host}:{port}"})
    await egress.wait_logged("progress_not_read")
    async with httpx.AsyncClient(base_url=f"http://{ends.host}:{port}", trust_env=False, verify=False) as client:
        answer = await answer_of(client, "/ready")
        assert answer.status_code == 503
        assert "the target has not said yet what was delivered" in answer.json()["problems"][0]
        assert (await client.get("/status")).json()["state"] == "asking the target"
    assert egress.logged("egress_started") == []
    assert await egress.stop() == 0


async def answer_of(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """Ask until somebody listens."""
    with trio.fail_after(LIMIT_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                return await client.get(path, timeout=LIMIT_S)
            await trio.sleep(POLL_S)
