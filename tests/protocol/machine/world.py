"""Both real halves of a link with a gap between them, and the oracles beside them: what the tests here drive.

A `World` is changed only by its operations. Their arguments are plain numbers, texts and lists, and what happens
depends on nothing else, so a run is a list of `[name, arguments]` that can be written down as JSON and played again
(`tests/protocol/scenarios`). After each operation the world checks everything that can be checked then.

All times are whole ticks of 1/64 s. In binary that is exact, and a sixteenth of the hold time is one tick, so
that the core's own grid, which GC-DLV-8 allows it, never rounds, and the oracle can say exactly when a message is given
up.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import attrs
import pytest

from gapconn.errors import LocalProtocolError
from gapconn.protocol import positions, reassembler, sequence
from gapconn.protocol.envelope import Run
from gapconn.protocol.progress import Progress
from gapconn.protocol.receiver import LinkReceiver
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.states import SenderState
from gapconn.protocol.wire import Burst, Slab
from gapconn.testing.memory_gap import Fate, MemoryGap, datagrams_of
from tests.protocol.machine import oracle
from tests.protocol.machine.egress import Egress, keys_of
from tests.protocol.machine.forgery import Stroke, fate_of, forged, injected, injected_sealed
from tests.protocol.machine.ledger import Accepted, Ledger, Losses, plain_run
from tests.protocol.machine.oracle import EgressLimits, SenderOracle, StreamPartition
from tests.protocol.sealing import SECRETS, seal, unseal, unsealed

Step: TypeAlias = list[Any]
"""`[name of an operation, its arguments by name]`."""

TICK_S = 1 / 64
LINK_ID = 7
HEARTBEAT_TICKS = 16
TIMEOUT_TICKS = 48
"""The interruption timeout that ingresses announce."""
OWN_TIMEOUT_TICKS = 64
"""The interruption timeout of the egress, until an ingress announces another."""
HOLD_TICKS = 16
SENT_MESSAGE_BYTES_MAX = 40_000

# Small enough to be met now and then.
SEQUENCE_WINDOW = 128
JUMP_UNCONFIRMED_MAX = 512
MESSAGES_HELD_MAX = 12
POSITIONS_TRACKED_MAX = 3
LOST_RANGES_MAX = 6

VOLATILE = 3
"""The partition of each ingress whose positions begin again in every session, as those of datagrams do."""


@contextlib.contextmanager
def small_limits() -> Iterator[None]:
    """The limits of the registry that a small test would never reach, made small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "SEQUENCE_WINDOW", SEQUENCE_WINDOW)
        patch.setattr(sequence, "JUMP_UNCONFIRMED_MAX", JUMP_UNCONFIRMED_MAX)
        patch.setattr(reassembler, "MESSAGES_HELD_MAX", MESSAGES_HELD_MAX)
        patch.setattr(reassembler, "LOST_RANGES_MAX", LOST_RANGES_MAX)
        patch.setattr(positions, "POSITIONS_TRACKED_MAX", POSITIONS_TRACKED_MAX)
        yield


@attrs.define
class Ingress:
    """A host on the source side: what it stores, the source that it reads, and its process while that runs."""

    name: str
    stored_epoch: int = 0
    committed: dict[int, int] = attrs.field(factory=lambda: {0: 1, 1: 1})
    """Records of each partition that were acknowledged to the source: some already before the first start."""
    sender: LinkSender | None = None
    reads: SenderOracle | None = None
    read: dict[int, int] = attrs.field(factory=dict)
    """Records of each partition that were read in this session, those committed before included."""
    last_sent: dict[int, int] = attrs.field(factory=dict)
    """The last position sent in this session, by partition."""
    key_id: int = 1
    """The key that it seals with, where the link is sealed."""

    @property
    def running(self) -> bool:
        return self.sender is not None and self.sender.state is not SenderState.CLOSED

    @property
    def active(self) -> bool:
        return self.sender is not None and self.sender.state is SenderState.ACTIVE

    @property
    def epoch(self) -> int:
        return self.reads.epoch if self.reads is not None else 0


Method = TypeVar("Method", bound=Callable[..., None])


def operation(method: Method) -> Method:
    """Write the call down among the world's steps, unless it is a part of another operation."""

    @functools.wraps(method)
    def wrapper(self: World, **arguments: Any) -> None:
        if not self.inside_operation:
            self.steps.append([method.__name__, arguments])
        inside, self.inside_operation = self.inside_operation, True
        method(self, **arguments)
        self.inside_operation = inside

    return cast(Method, wrapper)


class World:
    """Some ingresses, a gap, one egress at a time, and the oracles.

    Args:
        reassembly_bytes_max: Memory of the egress.
        message_bytes_max: The longest message that the egress takes. Ingresses send up to `SENT_MESSAGE_BYTES_MAX`.
        burst_max: How many equal datagrams the egress is given in one burst at the most.
        repair_share: Repair symbols that the ingresses send, in hundredths of a percent.
        sealed: Whether the link is sealed.
        available: Whether the egress delivers messages as soon as they are whole.
        mark: Called with the name of each noteworthy thing that happens.
    """

    def __init__(
        self,
        *,
        reassembly_bytes_max: int = 1 << 20,
        message_bytes_max: int = SENT_MESSAGE_BYTES_MAX,
        burst_max: int = 64,
        repair_share: int = 0,
        sealed: bool = False,
        available: bool = False,
        mark: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.steps: list[Step] = []
        self.inside_operation = False
        self.reached: Counter[str] = Counter()
        self.ticks = 1_000
        self.ingresses = [Ingress(name) for name in ("north", "south", "east")]
        self._mark = mark
        self._burst_max = burst_max
        self._repair_share = repair_share
        self._gap = MemoryGap()
        self._overheard: deque[bytes] = deque(maxlen=2_000)
        """Datagrams as they were sent."""
        self._sealed = sealed
        self._wall_ms = 1_000_000
        self.sessions: dict[int, SenderOracle] = {}
        self._logs: dict[StreamPartition, list[int]] = {}
        self._limits = EgressLimits(
            link_id=LINK_ID,
            interruption_timeout_s=OWN_TIMEOUT_TICKS * TICK_S,
            hold_s=HOLD_TICKS * TICK_S,
            reassembly_bytes_max=reassembly_bytes_max,
            message_bytes_max=message_bytes_max,
            sequence_window=SEQUENCE_WINDOW,
            jump_unconfirmed_max=JUMP_UNCONFIRMED_MAX,
            messages_held_max=MESSAGES_HELD_MAX,
            positions_tracked_max=POSITIONS_TRACKED_MAX,
            lost_ranges_max=LOST_RANGES_MAX,
            available=available,
            sealed=sealed,
        )
        self._secrets = {1: SECRETS[1], 2: SECRETS[2]} if sealed else None
        """Those that the egress has."""
        self._saved: Progress | None = None
        """The egress's stored state."""
        self._journal = Losses()
        """What is stored of its losses."""
        self._sent: dict[tuple[int, int], list[bytes]] = {}
        """By epoch and number: the datagrams of each message, unsealed."""
        self._begin_egress_life(accepted=set())

    @property
    def now_s(self) -> float:
        return self.ticks * TICK_S

    # == operations: the ingresses ============================================================================

    @operation
    def start_ingress(self, *, host: int, keep: bool) -> None:
        """Start an ingress; one that runs is killed before. Without `keep`, its stored state is gone."""
        ingress = self.ingresses[host]
        stored = ingress.stored_epoch if keep else 0
        # Two sessions of one epoch could not be told apart. The specification leaves it to clocks that there are none.
        epoch = max(self._wall_ms, stored + 1)
        while epoch in self.sessions:
            epoch += 1
        ingress.stored_epoch = epoch
        mtu = 200 + epoch % 90
        ingress.sender = LinkSender(
            SenderSettings(
                link_id=LINK_ID,
                epoch=epoch,
                previous_epoch=stored,
                heartbeat_interval_s=HEARTBEAT_TICKS * TICK_S,
                interruption_timeout_s=TIMEOUT_TICKS * TICK_S,
                mtu_bytes=mtu,
                message_bytes_max=SENT_MESSAGE_BYTES_MAX,
                repair_share=self._repair_share,
                keys=keys_of(SECRETS, ingress.key_id) if self._sealed else None,
            )
        )
        ingress.reads = self.sessions[epoch] = SenderOracle(
            link_id=LINK_ID,
            epoch=epoch,
            previous_epoch=stored,
            mtu=mtu,
            repair_share=self._repair_share,
            heartbeat_s=HEARTBEAT_TICKS * TICK_S,
            timeout_s=TIMEOUT_TICKS * TICK_S,
            now_s=self.now_s,
            positions_tracked_max=POSITIONS_TRACKED_MAX,
            sealed=self._sealed,
        )
        ingress.read, ingress.last_sent = dict(ingress.committed), {}
        ingress.read.pop(VOLATILE, None)
        self._transmit(ingress, ingress.sender.start(self.now_s))
        self._arrive()
        self._check()

    @operation
    def steal_state(self, *, thief: int, victim: int) -> None:
        """The stored state of one ingress gets to another host."""
        self.ingresses[thief].stored_epoch = self.ingresses[victim].stored_epoch

    @operation
    def set_wall_clock(self, *, ms: int) -> None:
        """The wall clock, from which epochs are taken, is set forward or back."""
        self._wall_ms = max(1, self._wall_ms + ms)

    @operation
    def stop_ingress(self, *, host: int, strokes: list[Stroke]) -> None:
        """Stop an ingress in order."""
        ingress = self.ingresses[host]
        if ingress.sender is not None:
            self._transmit(ingress, ingress.sender.stop(), strokes)
            assert ingress.sender.next_deadline_s() is None
            assert ingress.sender.stop() == []
            assert ingress.reads is not None
            assert ingress.reads.types[oracle.SHUTDOWN] == 3, "GC-SESS-4"
        self._arrive()
        self._check()

    @operation
    def kill_ingress(self, *, host: int) -> None:
        """An ingress is gone without a word."""
        self.ingresses[host].sender = None

    @operation
    def send(
        self,
        *,
        host: int,
        parts: list[list[int]],
        plain: int,
        size: int,
        commit: bool,
        strokes: list[Stroke],
        pause_ticks: int = 0,
    ) -> None:
        """Send one message; nothing if the ingress does not run.

        Args:
            host: Which ingress.
            parts: `[partition, records]` for each run of records with positions.
            plain: Records without positions.
            size: Of the body, in bytes.
            commit: Whether the source is told.
            strokes: What the gap does to its datagrams; to those of each burst, if there are pauses.
            pause_ticks: Time between its bursts, in which heartbeats may be due.
        """
        ingress = self.ingresses[host]
        if ingress.sender is None or ingress.reads is None:
            return
        number = len(ingress.reads.messages)
        body = (f"{ingress.epoch}/{number}/".encode() * (size // 8 + 1))[:size]
        read, last_sent = dict(ingress.read), dict(ingress.last_sent)
        runs = [self._read_source(ingress, partition, count) for partition, count in parts]
        records = plain + sum(run.count for run in runs)

        def compose(sender: LinkSender) -> int:
            def write_body(buffer: bytearray, offset: int) -> None:
                buffer[offset:] = body

            return sender.compose(runs, records, write_body, self.now_s)

        if not ingress.active or size > SENT_MESSAGE_BYTES_MAX - 32:
            with pytest.raises(LocalProtocolError):
                compose(ingress.sender)
            assert ingress.sender.next_burst(Slab()) is None, "GC-DLV-3"
            ingress.read, ingress.last_sent = read, last_sent
            self._reach("message refused")
            return
        assert compose(ingress.sender) == number, "GC-DLV-2"
        bursts = []
        while (burst := ingress.sender.next_burst(Slab())) is not None:
            if pause_ticks:
                self._transmit(ingress, [burst], strokes)
                self.wait(ticks=pause_ticks, how="late")
            else:
                bursts.append(burst)
        self._transmit(ingress, bursts, strokes)
        if commit:
            ingress.committed = dict(ingress.read)
        sent = ingress.reads.messages[number]
        as_given = [run[:6] for run in sent.runs]
        assert (as_given, sent.record_count, sent.body) == ([plain_run(run)[:6] for run in runs], records, body)
        self._arrive()
        self._check()

    @operation
    def send_many(self, *, host: int, count: int, strokes: list[Stroke]) -> None:
        """Send short messages one behind the other; the gap strikes the first one."""
        for place in range(count):
            self.send(host=host, parts=[[0, 1]], plain=0, size=20, commit=True, strokes=[] if place else strokes)

    @operation
    def repeat(self, *, host: int, where: int, count: int, strokes: list[Stroke]) -> None:
        """Send messages of the session again; `where` in thousandths of all that were. Nothing if it cannot send."""
        ingress = self.ingresses[host]
        if not ingress.active or ingress.sender is None or ingress.reads is None:
            return
        sent = len(ingress.reads.messages)
        first = where * sent // 1_000
        again = [self._sent[ingress.epoch, number] for number in range(first, min(first + count, sent))]
        datagrams = []
        for raw in (raw for message in again for raw in message):
            sequence = ingress.reads.repeated()
            ingress.sender._sequence = sequence + 1
            renewed = attrs.evolve(oracle.Datagram.read(raw), sequence=sequence, key_id=0).with_payload(raw[48:-8])
            datagrams.append(seal(renewed, SECRETS[ingress.key_id], ingress.key_id) if self._sealed else renewed)
        self._give_to_gap(datagrams, strokes)
        self._reach("repeated")
        self._arrive()
        self._check()

    @operation
    def rewind(self, *, host: int) -> None:
        """The source begins its volatile partition again, in the midst of the session."""
        ingress = self.ingresses[host]
        ingress.read.pop(VOLATILE, None)
        ingress.last_sent.pop(VOLATILE, None)

    @operation
    def use_key(self, *, host: int, key_id: int) -> None:
        """An ingress of a sealed link seals with another key from now on, whether the egress has it or not."""
        ingress = self.ingresses[host]
        ingress.key_id = key_id
        if self._sealed and ingress.sender is not None:
            ingress.sender.use_keys(keys_of(SECRETS, key_id))

    @operation
    def give_keys(self, *, key_ids: list[int]) -> None:
        """The egress of a sealed link has these keys from now on."""
        if self._sealed:
            self._secrets = {key_id: SECRETS[key_id] for key_id in key_ids}
            self._egress.use_secrets(self._secrets)

    @operation
    def outage(self, *, host: int, messages: int) -> None:
        """Long messages are sent while nothing passes the gap."""
        for _ in range(messages):
            everything: list[Stroke] = [["drop", 0, 1_000, 0]]
            self.send(host=host, parts=[[0, 2]], plain=0, size=39_000, commit=True, strokes=everything)

    # == operations: the path =================================================================================

    @operation
    def replay(self, *, where: int, count: int) -> None:
        """Datagrams that were sent before arrive again; `where` in thousandths of all that were."""
        first = where * len(self._overheard) // 1_000
        self._egress.feed(list(self._overheard)[first : first + count], self.now_s)
        self._check()

    @operation
    def inject(self, *, kind: str, where: int) -> None:
        """A datagram arrives that no ingress of this link sent so."""
        if self._sealed:
            datagram = injected_sealed(kind, [unsealed(raw) for raw in self._overheard], where)
        else:
            datagram = injected(kind, self._overheard, where)
        if datagram is not None:
            self._egress.feed([datagram], self.now_s)
            self._reach(f"injected {kind}")
        self._check()

    # == operations: the egress ===============================================================================

    @operation
    def accept(self, *, count: int) -> None:
        """The sink accepts so many of the messages that it was given, and the egress stores its progress."""
        self._ledger.accept(count)
        took = self._ledger.tracker.take()
        if took is not None:
            before = self._saved
            ahead = before.ahead if before is not None and before.epoch == took.epoch else ()
            self._saved = attrs.evolve(
                took,
                positions=(dict(before.positions) if before else {}) | dict(took.positions),
                ahead=tuple(each for each in (*ahead, *took.ahead) if each.number >= took.next_message),
            )

    @operation
    def restart_egress(self, *, keep: bool, in_order: bool, away_ticks: int) -> None:
        """The egress stops, is away for a while, and starts again.

        Args:
            keep: Whether its stored state is still there.
            in_order: Whether it was stopped, and the sink accepted everything; else it was killed.
            away_ticks: What arrives in that time is lost.
        """
        if in_order:
            self._egress.close(self.now_s)
            self._check()
            self.accept(count=len(self._ledger.with_sink))
        for _ in range(away_ticks):
            self.ticks += 1
            self._senders_due()
            self._gap.arrive(self.now_s)
        if not keep:
            self._saved = None
            self._journal = Losses()
        if self._saved is not None:
            self._saved = self._journal.known_to(self._saved)
        self._begin_egress_life(accepted=self._ledger.accepted if keep else set())
        self._check()

    # == operations: time =====================================================================================

    @operation
    def wait(self, *, ticks: int, how: str) -> None:
        """Let time pass.

        Args:
            ticks: How much.
            how: "punctual": every timer is called when it asks for it. "late": the egress is called only for what
                arrives, and at the end. "asleep": both ends are called at the end only.
        """
        end = self.ticks + ticks
        while how != "asleep" and (due := self._next_due(how)) is not None and due < end:
            self.ticks = max(self.ticks, due)
            self._tick(how)
        self.ticks = end
        self._wall_ms += ticks * 1_000 // 64
        self._tick("punctual")
        self._check()

    @operation
    def step_back(self, *, ticks: int) -> None:
        """Both ends are told a time that has passed already (GC-TIME-4)."""
        earlier = self.now_s - ticks * TICK_S
        for ingress in self.ingresses:
            if ingress.running and ingress.sender is not None:
                assert ingress.sender.handle_timeout(earlier) == []
        self._egress.pass_time(earlier)
        self._egress.feed(list(self._overheard)[-1:], earlier)
        self._check()

    @operation
    def settle(self) -> None:
        """The faults stop; then everything that is owed is settled (the promise of progress, GC-MOD-3, GC-MOD-4)."""
        while self._gap.under_way:
            self.wait(ticks=16, how="punctual")
        self.wait(ticks=4 * OWN_TIMEOUT_TICKS, how="punctual")
        epoch = self.receiver.epoch
        running = {ingress.epoch: host for host, ingress in enumerate(self.ingresses) if ingress.running}
        if epoch not in running:
            assert max(running, default=0) <= epoch, "a newcomer must have taken the link by now (GC-SESS-7)"
        else:
            sent = self.sessions[epoch]
            assert self.receiver.next_message == len(sent.messages), "GC-DLV-10"
            assert (self.receiver.held_messages, self.receiver.held_bytes) == (0, 0)
            assert self._ledger.records[epoch] == sent.records, "GC-DLV-13"
            delivered = self._ledger.delivered[epoch]
            self.send(host=running[epoch], parts=[[0, 1]], plain=1, size=500, commit=True, strokes=[])
            assert self._ledger.delivered[epoch] == delivered + 1, "GC-MOD-3"
        self._ledger.check_located()

    # == how it works =========================================================================================

    def _begin_egress_life(self, *, accepted: Accepted) -> None:
        self._egress = Egress(
            self._limits, burst_max=self._burst_max, now_s=self.now_s, saved=self._saved, secrets=self._secrets
        )
        self._ledger = Ledger(
            sessions=self.sessions,
            logs=self._logs,
            accepted=accepted,
            saved=self._saved,
            journal=self._journal,
            reach=self._reach,
        )
        self._drops_reached: set[str] = set()
        self._rebuilt = 0

    @property
    def receiver(self) -> LinkReceiver:
        """The egress of now."""
        return self._egress.receiver

    def _read_source(self, ingress: Ingress, partition: int, count: int) -> Run:
        """The next records of a partition, as a run."""
        stream = f"{ingress.name}-records"
        log = self._logs.setdefault((stream, partition), [])
        at = ingress.read.get(partition, 0)
        while len(log) < at + count:
            # Every third position holds no record: a transaction marker, a compacted record.
            log.append((log[-1] if log else partition) + (2 if len(log) % 3 == 2 else 1))
        # Without any that is acknowledged, and in a volatile one, nothing is claimed (GC-DLV-16).
        previous = ingress.last_sent.get(partition, log[at - 1] if at else -1)
        ingress.read[partition] = at + count
        ingress.last_sent[partition] = log[at + count - 1]
        return Run(stream, partition, previous, log[at], log[at + count - 1], count)

    def _transmit(self, ingress: Ingress, bursts: Iterable[Burst], strokes: Iterable[Stroke] = ()) -> None:
        assert ingress.reads is not None
        datagrams = [datagram for burst in bursts for datagram in datagrams_of(burst)]
        for datagram in datagrams:
            if self._sealed:
                assert datagram[4:6] == b"\0\1", "GC-SEC-1"
                assert datagram[15] == ingress.key_id, "GC-SEC-4"
                assert unseal(datagram) is not None, "GC-SEC-1"
            ingress.reads.read(unsealed(datagram) if self._sealed else datagram, self.now_s)
            plain = unsealed(datagram) if self._sealed else datagram
            header = oracle.Datagram.read(plain)
            if header.type == oracle.DATA:
                self._sent.setdefault((header.epoch, header.message), []).append(plain)
        self._give_to_gap(datagrams, strokes)

    def _give_to_gap(self, datagrams: list[bytes], strokes: Iterable[Stroke]) -> None:
        self._overheard += datagrams
        fates: dict[int, Fate] = {}
        for kind, where, count, amount in strokes:
            first = where * len(datagrams) // 1_000
            for place in range(first, min(first + count, len(datagrams))):
                if kind in ("spoil", "contradict"):
                    datagrams[place] = self._forged(kind, datagrams[place], amount)
                else:
                    fates[place] = fate_of(kind, amount)
        self._gap.send(datagrams, self.now_s, fates)

    def _forged(self, kind: str, datagram: bytes, amount: int) -> bytes:
        if self._sealed:
            key_id = datagram[15]
            return seal(forged(kind, unsealed(datagram), amount), SECRETS[key_id], key_id)
        return forged(kind, datagram, amount)

    def _arrive(self) -> None:
        self._egress.feed(self._gap.arrive(self.now_s), self.now_s)

    def _next_due(self, how: str) -> int | None:
        times = [i.sender.next_deadline_s() for i in self.ingresses if i.running and i.sender is not None]
        times.append(self._gap.next_arrival_s)
        if how == "punctual":
            times.append(self.receiver.next_deadline_s())
        return min((round(time / TICK_S) for time in times if time is not None), default=None)

    def _tick(self, how: str) -> None:
        self._senders_due()
        self._arrive()
        if how == "punctual":
            self._egress.pass_time(self.now_s)

    def _senders_due(self) -> None:
        for ingress in self.ingresses:
            if ingress.running and ingress.sender is not None:
                self._transmit(ingress, ingress.sender.handle_timeout(self.now_s))
                deadline = ingress.sender.next_deadline_s()
                assert deadline is not None
                assert deadline > self.now_s

    def _check(self) -> None:
        """Compare the egress with its oracle, and what it says with what was sent."""
        for ingress in self.ingresses:
            if ingress.running and ingress.reads is not None:
                assert self.now_s - ingress.reads.last_said_s <= HEARTBEAT_TICKS * TICK_S, "GC-TIME-1"
        if self.receiver.counters.messages_rebuilt > self._rebuilt:
            self._rebuilt = self.receiver.counters.messages_rebuilt
            self._reach("rebuilt")
        for event in self._egress.check(self.now_s):
            self._ledger.enter(event, self._egress.oracle.chains_begun)
        for reason in self._egress.dropped.keys() - self._drops_reached:
            self._drops_reached.add(reason)
            self._reach(f"dropped {reason}")

    def _reach(self, name: str) -> None:
        self.reached[name] += 1
        self._mark(name)
