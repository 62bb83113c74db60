"""A pair between two Kafka topics under load, that things are done to; and the account of every record at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from gapconn.config import Link
from gapconn.store.state import IngressState
from tests.faults.ledger import Account, check_source, messages_of
from tests.faults.records import Load
from tests.kafka.cluster import Cluster
from tests.processes.ends import LIMIT_S, POLL_S, End, Ends

DELIVERIES: Final = ("at-least-once", "exactly-once")
"""The delivery modes that the sink has."""
PARTITIONS: Final = 4
COMMAND_LIMIT_S: Final = 3600.0
"""What a command may take: a resend of a million records takes its time."""
CLOSING_RECORDS: Final = 5
"""Of each partition, at the very end, when all faults are over: what is missing before them has a place."""
ROUND_LIMIT_S: Final = 3 * LIMIT_S
"""How long records may need to flow again after something was done."""


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], what: str, end: End | None = None, limit_s: float = ROUND_LIMIT_S
) -> None:
    """Wait until `condition` holds; in vain when `end` has ended."""
    deadline_s = trio.current_time() + limit_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert end is None or end.process.poll() is None, f"{end.name} ended before {what}"
        assert trio.current_time() < deadline_s, f"not within {limit_s:g} s: {what}"
        await trio.sleep(POLL_S)


async def command(ends: Ends, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run gapconn to its end."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GAPCONN_")}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gapconn", *arguments],
            capture_output=True, text=True, env=inherited, cwd=ends.directory, timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip

    return await trio.to_thread.run_sync(run)


async def journal_of(ends: Ends) -> list[dict[str, Any]]:
    """All entries of the gap journal."""
    listed = await command(ends, "gaps", "list", str(ends.file), "--all", "--json")
    assert listed.returncode == 0, listed.stderr
    entries: list[dict[str, Any]] = json.loads(listed.stdout)
    return entries


@attrs.define(eq=False)
class KafkaPair:
    """Two ends that can be killed and started, the topics that they connect, and the load on the first."""

    ends: Ends
    source: Cluster
    target: Cluster
    delivery: str
    topic: str
    load: Load
    target_address: str
    """Where the egress finds the target cluster."""
    chance: random.Random
    name: str
    """Of the link: with exactly-once, the target cluster knows it, so every case has its own."""
    previous_epoch: int = 1
    """Of the session that the ingress remembers."""
    running: dict[str, End] = attrs.field(factory=dict)
    """By role."""
    faults: dict[str, int] = attrs.field(factory=dict)

    @classmethod
    async def make(
        cls,
        ends: Ends,
        source: Cluster,
        target: Cluster,
        delivery: str,
        *,
        records_per_second: float = 2_000,
        target_address: str = "",
        with_target: bool = True,
        seed: int = 1,
    ) -> KafkaPair:
        """Two topics; without the target, the sink waits until `create_target` makes it."""
        topic = await trio.to_thread.run_sync(lambda: source.create_topic(partitions=PARTITIONS))
        load = Load(source.address, topic, PARTITIONS, records_per_second)
        chance = random.Random(seed)
        pair = cls(ends, source, target, delivery, topic, load, target_address or target.address, chance, topic)
        if with_target:
            await pair.create_target()
        return pair

    async def create_target(self) -> None:
        """Make the topic that the sink writes to."""
        name = f"copy-{self.topic}"
        await trio.to_thread.run_sync(lambda: self.target.create_topic(name=name, partitions=PARTITIONS))

    def configure(self, *, spool: str = "", static: bool = True, name: str = "orders", **link: Any) -> None:
        """Write the configuration, with keys of [link] over those of the tests.

        Args:
            spool: Keys of [spool].
            static: The ingress is a member of its group with a name of its own: it gets its partitions back at once
                when it was killed, and keeps them when it leaves.
            link: Further keys of [link].
        """
        client = 'client = { "group.instance.id" = "first" }' if static else ""
        self.ends.configure(
            f'type = "kafka"\nbootstrap_servers = "{self.source.address}"\ntopics = ["{self.topic}"]\n'
            f'group_id = "{self.topic}"\n{client}',
            f'type = "kafka"\nbootstrap_servers = "{self.target_address}"\ntopic = "copy-{{topic}}"\n'
            f'delivery = "{self.delivery}"',
            spool=spool,
            **{"name": self.name, **link},
        )
        state = Path(link.get("state_directory", self.ends.directory / "state"))
        with IngressState.open(state, self.name, Link(name=self.name, address=self.ends.address).id) as stored:
            stored.begin_session(self.previous_epoch)  # so it need not announce itself first

    @property
    def ingress(self) -> End:
        return self.running["ingress"]

    @property
    def egress(self) -> End:
        return self.running["egress"]

    def count(self, fault: str, times: int = 1) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + times

    # -- what is done to them --------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start both; the egress hears the session from its beginning."""
        await self.begin_egress()
        self.start("ingress")

    async def begin_egress(self) -> None:
        """Start it, and wait until it hears the link."""
        self.start("egress")
        await self._egress_has_started()

    async def _egress_has_started(self) -> None:
        # With exactly-once it first waits until the cluster has done away with the transaction of the one before.
        await eventually(lambda: bool(self.egress.logged("sink_started")), "the egress has started", self.egress)

    def start(self, *roles: str, **options: Any) -> None:
        """Start these ends, and do not wait for them."""
        for role in roles:
            self.running[role] = self.ends.start(role, **options)

    async def kill(self, *roles: str) -> None:
        """SIGKILL for all of these at the same moment."""
        ends = [self.running[role] for role in roles]
        for end in ends:
            assert end.process.poll() is None, f"{end.name} ended by itself with {end.process.returncode}"
        for end in ends:
            end.process.kill()
        for end in ends:
            await end.ended()

    async def flows(self, records: int = 1) -> None:
        """Wait until so many records arrive at this life of the egress."""
        await self._egress_has_started()
        await self.egress_until(lambda s: s["received"]["records"] >= records, f"{records} records arrived")

    async def egress_until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Wait until `condition` holds for the /status of the egress."""

        async def holds() -> bool:
            return condition(await self.egress.status())

        await eventually(holds, what, self.egress)

    async def accepts(self) -> None:
        """Wait until the sink has accepted something in this life of the egress."""
        await self.egress_until(lambda s: s["accepted_messages"] > 0, "something was accepted")

    async def accepted(self) -> None:
        """Wait until the sink has accepted all that the egress has."""
        await self.egress_until(
            lambda s: not (s["held"]["unaccepted_messages"] or s["held"]["incomplete_messages"]), "all was accepted"
        )

    async def stop_for(self, role: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        process = self.running[role].process
        process.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    # -- the load, and the end -------------------------------------------------------------------------------

    @asynccontextmanager
    async def loaded(self) -> AsyncIterator[None]:
        """Records are produced inside, and all of them acknowledged by the source cluster behind it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self.load.run)
            try:
                yield
            finally:
                self.load.stop()
        await trio.to_thread.run_sync(self.load.finish)

    async def produce(self, count: int) -> None:
        """Append so many records in all, and wait until the source cluster has them."""

        def append() -> None:
            self.load.append(count)
            self.load.finish()

        await trio.to_thread.run_sync(append)

    async def sent(self) -> None:
        """Wait until everything that was produced has been sent and committed."""

        def committed() -> int:
            return sum(
                max(0, self.source.committed(self.topic, self.topic, partition=partition).offset)
                for partition in self.load.counts
            )

        deadline_s = trio.current_time() + ROUND_LIMIT_S
        before = 0
        while (now := await trio.to_thread.run_sync(committed)) < self.load.produced:
            if now != before:
                before, deadline_s = now, trio.current_time() + ROUND_LIMIT_S
            assert trio.current_time() < deadline_s, f"of {self.load.produced} records only {now} are sent"
            await trio.sleep(POLL_S)

    async def close(self, case: str, *others: Ends, one_link: bool = True, places: bool = True) -> Account:
        """End everything in order, and account for every record; `others` are further pairs, which have ended."""
        await self.finish()
        return await self.account(case, *others, one_link=one_link, places=places)

    async def finish(self) -> None:
        """Wait until all is sent, with some records behind it, and end everything in order."""
        await self.sent()
        await self.produce(CLOSING_RECORDS * PARTITIONS)
        await self.sent()
        await self.leave()

    async def sends_on(self, records: int = 100) -> None:
        """Wait until so many more records are accepted by this pair's sink."""
        before = await self._accepted()

        async def more() -> bool:
            return await self._accepted() >= before + records

        await eventually(more, f"{records} records more are accepted")

    async def _accepted(self) -> int:
        """Records that the target topic has."""

        def ends() -> int:
            return sum(end for _, end in self.target.ends(f"copy-{self.topic}"))

        return await trio.to_thread.run_sync(ends)

    async def resend(self) -> int:
        """Carry the list of what is missing to the source side, and have it sent again; how many positions that are."""
        bundle = self.ends.directory / "gaps.json"
        exported = await command(self.ends, "gaps", "export", str(self.ends.file), "-o", str(bundle))
        assert exported.returncode == 0, exported.stderr
        resent = await command(self.ends, "resend", str(self.ends.file), "--gaps", str(bundle))
        assert resent.returncode == 0, resent.stderr
        self.count("resend")
        return sum(last - first + 1 for _, _, first, last in json.loads(bundle.read_text())["missing"])

    async def committed_once(self) -> None:
        """Wait until the group has an offset in every partition: what is killed before its first one begins anew."""

        def committed() -> bool:
            offsets = (self.source.committed(self.topic, self.topic, partition=p).offset for p in self.load.counts)
            return all(offset >= 0 for offset in offsets)

        async def is_so() -> bool:
            return await trio.to_thread.run_sync(committed)

        await eventually(is_so, "every partition has an offset of the group")

    # -- a second pair ---------------------------------------------------------------------------------------

    async def join(self) -> KafkaPair:
        """Start a second pair in the same group, and wait until it has taken over some partitions."""
        directory = self.ends.directory / "second"
        directory.mkdir()
        second = attrs.evolve(
            self, ends=Ends(directory, running=self.ends.running), running={}, faults={}, name=f"{self.name}-2"
        )
        second.configure(static=False)
        await second.begin()
        await second.flows()
        self.count("second pair joins")
        return second

    async def leave(self) -> None:
        """Stop this pair in order, which gives its partitions to the other one."""
        assert await self.ingress.stop() == 0
        await self.egress_until(lambda s: s["state"] == "closed", "the session is over")
        await self.drained()
        assert await self.egress.stop() == 0

    async def drained(self) -> None:
        """Wait until the sink has accepted everything, as long as it still accepts something."""
        deadline_s = trio.current_time() + ROUND_LIMIT_S
        before = -1
        while left := (await self.egress.status())["held"]["unaccepted_messages"]:
            if left != before:
                before, deadline_s = left, trio.current_time() + ROUND_LIMIT_S
            assert trio.current_time() < deadline_s, f"the sink does not accept {left} messages"
            await trio.sleep(POLL_S)

    async def account(self, case: str, *others: Ends, one_link: bool = True, places: bool = True) -> Account:
        """Account for every record, with all ends stopped; `one_link` and `places` are those of `Account.settle`."""
        journal = [entry for ends in (self.ends, *others) for entry in await journal_of(ends)]

        def compare() -> Account:
            check_source(self.source, self.topic, self.load.counts)
            return Account.of(
                case,
                self.delivery,
                self.load.counts,
                self.topic,
                delivered=messages_of(self.target, f"copy-{self.topic}"),
                journal=journal,
                faults=self.faults,
            )

        account = await trio.to_thread.run_sync(compare)
        print(account)  # noqa: T201 - shown when the test failed
        account.report()
        account.settle(one_link=one_link, places=places)
        return account
