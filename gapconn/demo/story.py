"""The demo from its beginning to its end: who is started, harmed and ended, when, and what is waited for."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import trio
from trio_util import AsyncValue

from gapconn.demo.cargo import Cargo
from gapconn.demo.checks import Check, check_alarms, check_path
from gapconn.demo.ledger import GapFacts, Ledger, Level
from gapconn.demo.plan import GAP_FAULTS, Durations, Phase, pair_file
from gapconn.demo.processes import DemoError, Process, address_said, free_udp_port, read_status
from gapconn.units import Address

LOOK_INTERVAL_S: Final = 0.2
EVENT_TIMEOUT_S: Final = 75.0
CLEAN_UP_TIMEOUT_S: Final = 45.0


class Story:
    """One demo.

    Args:
        cargo: What crosses the gap.
        ledger: Where everything is written down.
        durations: How long each act takes.
        directory: An empty one.
        show: Called whenever there may be something new in the ledger.
    """

    def __init__(
        self, *, cargo: Cargo, ledger: Ledger, durations: Durations, directory: Path, show: Callable[[], None]
    ) -> None:
        self._cargo = cargo
        self._ledger = ledger
        self._durations = durations
        self._directory = directory
        self._show = show
        file = str(directory / "pair.toml")
        self._ingress = Process("ingress", ["gapconn", "ingress", file], directory)
        self._egress = Process("egress", ["gapconn", "egress", file], directory)
        self._gap = Process("gap", [], directory, speaks_on="out")
        self._must_run: set[str] = set()
        """Names of the processes that have no reason to end."""
        self._admin: dict[str, Address] = {}
        self._gap_address = ""
        self._path_checks: list[Check] = []
        self._looks = AsyncValue(0)
        """Rises after every look at the processes."""

    async def run(self) -> tuple[list[Check], str | None]:
        """Tell the whole story.

        Returns:
            Whether the figures add up; and what could not be cleaned up, if anything.

        Raises:
            DemoError: something went wrong that is not part of the story.
        """
        left_behind = None
        try:
            await self._cargo.prepare()
            async with trio.open_nursery() as nursery:
                await self._open()
                nursery.start_soon(self._watch)
                checks = await self._acts()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + CLEAN_UP_TIMEOUT_S, shield=True):
                async with trio.open_nursery() as nursery:
                    for process in (self._ingress, self._gap, self._egress):
                        nursery.start_soon(process.end)
                left_behind = await self._cargo.clean_up()
        return checks, left_behind

    # -- The acts ----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """The gap and the egress, before anybody sends."""
        egress = f"127.0.0.1:{await free_udp_port()}"
        faults = [word for name, share in GAP_FAULTS.items() for word in (f"--{name}", f"{share:g}")]
        self._gap.arguments += ["gapconn.testing.gap", "127.0.0.1:0", egress, "--calm", "--report", "50ms", *faults]
        await self._gap.start()
        with self._time_limit("the gap did not start", self._gap):
            while not self._gap_address:
                await trio.sleep(0.02)
                self._require(self._gap)
                self._hear_gap()
        file = pair_file(
            gap=self._gap_address,
            egress=egress,
            state_directory=str(self._directory / "state"),
            sections=self._cargo.sections(),
        )
        (self._directory / "pair.toml").write_text(file)
        await self._egress.start()

    async def _acts(self) -> list[Check]:
        await self._both_start()
        async with self._feeding():
            await self._clean()
            await self._lossy()
            await self._killed()
            await self._back()
        await self._stop()
        return [*await self._cargo.verify(self._ledger), *self._path_checks, *check_alarms(self._ledger)]

    async def _both_start(self) -> None:
        self._begin(Phase.CLEAN)
        self._must_run |= {"gap", "egress"}
        await self._until(lambda: "egress" in self._admin, "the egress did not start", self._egress)
        self._ledger.egress_life = "running"
        await self._start_ingress()

    async def _clean(self) -> None:
        await self._until(lambda: self._ledger.egress.records > 0, "no record arrived", self._ingress, self._egress)
        await trio.sleep(self._durations.clean_s)

    async def _lossy(self) -> None:
        self._begin(Phase.LOSSY)
        await self._switch_faults(on=True)
        await trio.sleep(self._durations.lossy_s)
        await self._until(lambda: self._ledger.egress.records_lost > 0, "the gap lost nothing")
        # A datagram that is lost directly before a crash has nothing behind it that could betray it. So that the
        # figures of gap and egress can be compared exactly, the gap is calm when a session ends.
        await self._switch_faults(on=False)

    async def _killed(self) -> None:
        self._begin(Phase.KILLED)
        ledger, killed = self._ledger, len(self._ledger.sessions)
        self._must_run.discard("ingress")
        self._admin.pop("ingress", None)
        await self._ingress.kill()
        ledger.ingress_life = "killed"
        ledger.tell(f"SIGKILL to the ingress, process {self._ingress.pid}", Level.ALARM)
        alarms = len(ledger.alarms)
        await self._until(lambda: len(ledger.alarms) > alarms, "the egress raised no alarm", self._egress)
        await self._until_quiet()
        ledger.sessions[killed - 1].settled_records = ledger.egress.records + ledger.egress.records_lost
        await trio.sleep(self._durations.away_s)

    async def _back(self) -> None:
        self._begin(Phase.BACK)
        ledger, arrived = self._ledger, self._ledger.egress.records
        ledger.ingress_life = "starting"
        await self._start_ingress()
        await self._until(
            lambda: ledger.standing_alarm is None and ledger.egress.records > arrived,
            "the link was not restored",
            self._ingress,
            self._egress,
        )
        await self._switch_faults(on=True)
        await trio.sleep(self._durations.back_s)
        await self._switch_faults(on=False)

    async def _stop(self) -> None:
        self._begin(Phase.STOP)
        ledger, session = self._ledger, self._ledger.sessions[-1]
        with self._time_limit("the ingress did not read everything", self._ingress):
            await self._cargo.drain()
        self._must_run.discard("ingress")
        self._admin.pop("ingress", None)
        await self._ingress.stop()
        ledger.ingress_life = "stopped"
        ledger.tell("SIGTERM to the ingress: it sent what it held and ended with exit code 0")
        await self._until(
            lambda: session.closed_records is not None and session.announced_records is not None,
            "the egress heard no Shutdown",
            self._egress,
        )
        await self._until_quiet()
        before = sum(each.settled_records for each in ledger.sessions[:-1])
        session.settled_records = ledger.egress.records + ledger.egress.records_lost - before
        self._path_checks = check_path(ledger.gap, ledger.egress)
        self._must_run.clear()
        self._admin.clear()
        await self._egress.stop()
        await self._gap.stop()
        self._read_logs()  # the last losses are told at the end
        ledger.egress_life = "stopped"
        ledger.tell("SIGTERM to the egress: it delivered what it held and ended with exit code 0")
        ledger.finished = True
        self._show()

    # -- What the acts are made of -----------------------------------------------------------------------------

    def _begin(self, phase: Phase) -> None:
        self._ledger.phase = phase
        self._show()

    @contextlib.asynccontextmanager
    async def _feeding(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cargo.feed)
            yield
            nursery.cancel_scope.cancel()

    async def _start_ingress(self) -> None:
        await self._ingress.start()
        self._ledger.tell(f"ingress started, process {self._ingress.pid}")
        self._must_run.add("ingress")
        await self._until(lambda: "ingress" in self._admin, "the ingress did not start", self._ingress)
        self._ledger.ingress_life = "running"

    async def _switch_faults(self, *, on: bool) -> None:
        self._gap.signal(signal.SIGUSR2)
        await self._until(lambda: self._ledger.gap.faults is on, "the gap did not obey", self._gap)
        self._ledger.tell("the gap begins to lose" if on else "the gap is calm")

    async def _until_quiet(self) -> None:
        """Nothing is on its way any more, and what can be settled is."""
        before = None
        with self._time_limit("the link did not become quiet", self._egress):
            while True:
                await self._looks.wait_transition(
                    lambda looks, _: looks % 2 == 0
                )  # far enough apart to see a difference
                facts = (self._ledger.gap, self._ledger.egress)
                if facts == before and self._ledger.egress.held == 0:
                    return
                before = facts

    async def _until(self, condition: Callable[[], bool], otherwise: str, *witnesses: Process) -> None:
        with self._time_limit(otherwise, *witnesses):
            await self._looks.wait_value(lambda _: condition())

    @contextlib.contextmanager
    def _time_limit(self, otherwise: str, *witnesses: Process) -> Iterator[None]:
        try:
            with trio.fail_after(EVENT_TIMEOUT_S):
                yield
        except trio.TooSlowError as error:
            last_words = "".join(f"\n{process.tail()}" for process in witnesses)
            raise DemoError(f"{otherwise} within {EVENT_TIMEOUT_S:g} s{last_words}") from error

    # -- Looking and listening ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at everything, again and again."""
        while True:
            self._read_logs()
            for process in (self._ingress, self._egress, self._gap):
                if process.name in self._must_run:
                    self._require(process)
            statuses = {}
            for name, admin in list(self._admin.items()):
                statuses[name] = await read_status(admin)
            self._hear_gap()  # last, so that the egress never seems to know of a loss before it happened
            self._ledger.look(statuses.get("ingress"), statuses.get("egress"))
            self._looks.value += 1
            self._show()
            await trio.sleep(LOOK_INTERVAL_S)

    def _require(self, process: Process) -> None:
        if not process.running:
            raise DemoError(f"the {process.name} ended by itself\n{process.tail()}")

    def _read_logs(self) -> None:
        for entry in self._egress.hear():
            if entry["event"] == "admin_listening":
                self._admin["egress"] = address_said(entry)
            self._ledger.egress_said(entry)
        for entry in self._ingress.hear():
            if entry["event"] == "admin_listening":
                self._admin["ingress"] = address_said(entry)
            self._ledger.ingress_said(entry)

    def _hear_gap(self) -> None:
        for report in self._gap.hear():
            if "listening" in report:
                self._gap_address = report["listening"]
            else:
                self._ledger.gap = GapFacts.of(report)
