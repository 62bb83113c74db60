"""What `spec/` says of both halves of a link, written down a second time: naive, slow, without the core.

`ReceiverOracle` is told the same datagrams and times as a `LinkReceiver`, one datagram at a time, and says what must
have happened. It keeps everything that it ever heard in plain lists and dictionaries and fires each timer at its very
time, so that it shares no short cut with the core: no windows, bursts, heaps, grids or ranges. `SenderOracle` reads
what a `LinkSender` sends and fails where that is not as specified.

Nothing of `gapconn.protocol` is imported here; the code of fec.md is in `tests.protocol.galois`. Names are those of
`spec/registry.toml`.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import msgspec
from xxhash import xxh3_64_digest

from tests.protocol import galois
from tests.protocol.sealing import unseal

Event: TypeAlias = tuple[Any, ...]
"""Its kind and what it says, for example `("lost", epoch, first, last, cause)`."""
StreamPartition: TypeAlias = tuple[str, int]
PlainRun: TypeAlias = tuple[str, int, int, int, int, int, int, bool, int]
"""stream, partition, previous, first, last, count, begun, continues, chain"""

STARTUP, DATA, HEARTBEAT, SHUTDOWN = 1, 2, 3, 4
ANNOUNCING, ACTIVE, CLOSING = 1, 2, 3
BATCH, POSITIONS = 1, 2

HEADER = struct.Struct(">HBBHHIHBBQQQII")
ANNOUNCEMENT = struct.Struct(">QQQQIIIHHBBBB12s")
ENVELOPE = struct.Struct(">BB2sIQII")


@attrs.frozen
class Datagram:
    """The fields of a datagram in the order of spec/wire.md."""

    magic: int
    version: int
    type: int
    flags: int
    symbol_length: int
    link_id: int
    blocks: int
    repair_symbols: int
    key_id: int
    epoch: int
    sequence: int
    message: int
    message_length: int
    symbol: int

    @classmethod
    def read(cls, raw: bytes) -> Datagram:
        return cls(*HEADER.unpack_from(raw))

    def symbols(self) -> int:
        """N: source symbols of the message."""
        return -(-self.message_length // self.symbol_length)

    def with_payload(self, payload: bytes) -> bytes:
        """The datagram, with a check that fits."""
        covered = HEADER.pack(*attrs.astuple(self)) + payload
        return covered + xxh3_64_digest(covered)


@attrs.frozen
class Announcement:
    """The fields of an announcement in the order of spec/wire.md."""

    previous_epoch: int
    messages_sent: int
    records_sent: int
    records_filtered: int
    heartbeat_interval: int
    interruption_timeout: int
    message_length_max: int
    mtu: int
    symbol_length_max: int
    security_mode: int
    fec_source_symbols: int
    fec_repair_symbols: int
    phase: int
    reserved: bytes = bytes(12)

    @classmethod
    def read(cls, payload: bytes) -> Announcement:
        return cls(*ANNOUNCEMENT.unpack(payload))

    def pack(self) -> bytes:
        return ANNOUNCEMENT.pack(*attrs.astuple(self))


@attrs.frozen
class Message:
    """An opened message."""

    kind: int
    first_record: int
    record_count: int
    runs: tuple[PlainRun, ...]
    body: bytes

    @classmethod
    def open(cls, raw: bytes) -> Message | None:
        """The message in these bytes; None when it is damaged (GC-WIRE-11)."""
        if len(raw) < 32 or xxh3_64_digest(raw[:-8]) != raw[-8:]:
            return None
        kind, compression, zeros, length, first_record, record_count, plain = ENVELOPE.unpack_from(raw)
        inside = raw[24:-8]
        if kind not in (BATCH, POSITIONS) or compression > 2 or any(zeros) or length > len(inside):
            return None
        if plain <= len(inside) - length if compression else plain:
            return None
        try:
            runs = msgspec.msgpack.decode(inside[:length])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        body = inside[length:]
        if kind == POSITIONS and (body or record_count or compression):
            return None
        return cls(kind, first_record, record_count, tuple(map(tuple, runs)), body)


def malformed(d: Datagram, payload: bytes) -> bool:
    """GC-WIRE-7, GC-WIRE-9."""
    if d.epoch == 0 or d.sequence >= 2**63 or (d.key_id and not d.flags & 1):
        return True
    if d.type == DATA:
        return not (
            1 <= d.symbol_length == len(payload)
            and d.message_length >= 33
            and 1 <= d.blocks <= d.symbols()
            and -(-d.symbols() // d.blocks) + d.repair_symbols <= 255
            and d.symbol < d.symbols() + d.repair_symbols * d.blocks
            and d.message <= d.sequence
        )
    if len(payload) != 64:
        return True
    a = Announcement.read(payload)
    return (
        any((d.symbol_length, d.blocks, d.repair_symbols, d.message, d.message_length, d.symbol))
        or a.messages_sent > d.sequence
        or a.previous_epoch >= d.epoch
        or not 1 <= a.heartbeat_interval <= a.interruption_timeout
        or a.phase not in (ANNOUNCING, ACTIVE, CLOSING)
        or any(a.reserved)
    )


@attrs.frozen(kw_only=True)
class EgressLimits:
    """What an egress is configured to do, and the limits of the registry as they are in the test."""

    link_id: int
    interruption_timeout_s: float
    hold_s: float
    reassembly_bytes_max: int
    message_bytes_max: int
    sequence_window: int
    jump_unconfirmed_max: int
    messages_held_max: int
    positions_tracked_max: int
    lost_ranges_max: int
    available: bool = False
    """`order = "available"`"""
    sealed: bool = False


@attrs.frozen
class Ahead:
    """What is known of a message that was delivered before earlier ones; no runs if it was damaged."""

    first_record: int
    record_count: int
    runs: tuple[PlainRun, ...]
    damaged: bool = False


@attrs.frozen(kw_only=True)
class Stored:
    """The stored state of an egress (GC-DLV-18)."""

    epoch: int
    next_message: int
    next_record: int
    positions: Mapping[StreamPartition, tuple[int, int, int]]
    """The session and the chain that delivered last, and up to which position."""
    lost: frozenset[int] = frozenset()
    """Messages of the session that the journal has as lost."""
    joined_at: int = 0
    ahead: Mapping[int, Ahead] = attrs.field(factory=dict)
    """Messages from `next_message` on that were delivered."""


@attrs.define
class _Incomplete:
    """Symbols of a message, by their place in it."""

    cut: tuple[int, ...]
    """What all its symbols say alike: message length, symbol length, blocks, repair symbols."""
    symbols: int
    """Source symbols."""
    present: dict[int, bytes] = attrs.field(factory=dict)
    of_block: Counter[int] = attrs.field(factory=Counter)
    """How many symbols of each block are present."""

    def add(self, number: int, symbol: bytes) -> None:
        self.present[number] = symbol
        self.of_block[(number if number < self.symbols else number - self.symbols) % self.cut[2]] += 1

    @property
    def complete(self) -> bool:
        """GC-FEC-3: each block has as many symbols as source symbols."""
        _, _, blocks, _ = self.cut
        return all(self.of_block[b] >= -(-(self.symbols - b) // blocks) for b in range(blocks))

    @property
    def missing(self) -> int:
        """Source symbols that have to be rebuilt."""
        return sum(number not in self.present for number in range(self.symbols))

    def bytes(self) -> bytes:
        """The message. Of repair symbols that are not all needed, those with the lowest numbers are used: where none
        is wrong, that makes no difference."""
        length, _, blocks, repair_symbols = self.cut
        symbols: list[bytes] = [b""] * self.symbols
        for b in range(blocks):
            block = [self.present.get(number) for number in range(b, self.symbols, blocks)]
            repair = {r: self.present.get(self.symbols + r * blocks + b) for r in range(repair_symbols)}
            there = [(r, symbol) for r, symbol in repair.items() if symbol is not None]
            symbols[b::blocks] = galois.rebuilt_block(block, dict(there[: block.count(None)]))
        return b"".join(symbols)[:length]


class ReceiverOracle:
    """The receiving half as specified.

    Args:
        limits: What the egress is configured to do.
        charge: What a message with such a cut (see `_Incomplete`) takes of `reassembly_bytes_max`. How memory is
            counted is the implementation's affair, so the oracle is told.
        now_s: The time.
        stored: The stored state of an earlier life.
    """

    def __init__(
        self,
        limits: EgressLimits,
        charge: Callable[[tuple[int, ...]], int],
        *,
        now_s: float,
        stored: Stored | None = None,
    ) -> None:
        self.limits = limits
        self.charge = charge
        self.now = now_s
        self.stored = stored
        self.events: list[Event] = []
        self.dropped: Counter[str] = Counter()
        self.used = 0
        self.messages_rebuilt = 0
        self.symbols_rebuilt = 0
        # Who has the link (spec/session.md).
        self.followed = stored.epoch if stored else 0
        self.state = "waiting"
        self.timeout = limits.interruption_timeout_s
        self.last_heard = now_s
        self.took_link = now_s
        self.rival: tuple[int, float] | None = None
        self.conflict = False
        self.conflict_raised: tuple[int, float] = (0, 0.0)
        """For which session, when."""
        self.foreign_raised: float | None = None
        # What cannot be verified (spec/security.md).
        self.secrets: Mapping[int, bytes] = {}
        self.unverified_heard: float | None = None
        # The session (spec/delivery.md).
        self.in_session = False
        self.session = 0
        self.ended = False
        self.predecessor = 0
        """The session before, until the followed one has named its own predecessor."""
        self.said: Announcement | None = None
        self.missed_before = 0
        self.horizon = 0
        self.highest = -1
        self.received: set[int] = set()
        self.jump: int | None = None
        self.next = 0
        self.known_sent = 0
        self.late_since: dict[int, float] = {}
        self.held: dict[int, _Incomplete] = {}
        self.lost: set[int] = set()
        """Reported, and not delivered late since."""
        self.late: OrderedDict[int, _Incomplete] = OrderedDict()
        """What has arrived of them; the one to which a symbol was added longest ago first."""
        self.joined_at = 0
        self.ahead: dict[int, Ahead] = {}
        self.records_seen = 0
        self.positions: OrderedDict[StreamPartition, tuple[int, int, int]] = OrderedDict(
            stored.positions if stored else {}
        )
        self.remembers_since = 0
        """A chain that began in an earlier message may have been delivered, and be unknown now."""
        self.chains_begun: dict[tuple[int, int, int], int] = {}
        """By (epoch, number, place of the run in the message), for each run that continued nothing that was delivered:
        the position behind which everything is owed."""

    # -- what can be asked ------------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    @property
    def missed(self) -> int:
        """GC-DLV-12."""
        return self.missed_before + self._missed_in_session()

    @property
    def held_bytes(self) -> int:
        return sum(self.charge(m.cut) for m in self.held.values())

    @property
    def ahead_bytes(self) -> int:
        """As the implementation counts it."""
        return sum(256 + 256 * len(message.runs) for message in self.ahead.values())

    @property
    def late_bytes(self) -> int:
        return sum(self.charge(m.cut) for m in self.late.values())

    def next_timer(self) -> tuple[float, str] | None:
        """The next thing that time brings."""
        timers = []
        if self.rival is not None:
            timers.append((self.rival[1] + self.timeout, "rival"))
        if self.state in ("waiting", "following"):
            timers.append((self.last_heard + self.timeout, "silence"))
        if self.unverified_heard is not None:
            timers.append((self.unverified_heard + self.timeout, "unverified"))
        if self.next in self.late_since:
            timers.append((self.late_since[self.next] + self.limits.hold_s, "reorder"))
        return min(timers, default=None)

    # -- time -------------------------------------------------------------------------------------------------

    def pass_time(self, now_s: float) -> None:
        """Fire each timer at its time (GC-TIME-3); time never steps back (GC-TIME-4)."""
        while (timer := self.next_timer()) is not None and timer[0] <= now_s:
            self.now = max(self.now, timer[0])
            if timer[1] == "silence":
                self.state = "interrupted"
                self._tell("interrupted", self.followed)
            elif timer[1] == "rival":
                self._forget_rival()
            elif timer[1] == "unverified":
                self._clear_unverified()
            else:
                self._give_up_next("gap")
                self._deliver_ready()
                self._account_announced(self.next)
        self.now = max(self.now, now_s)

    def close(self, now_s: float) -> None:
        """The egress stops: what is complete is delivered, what is missing before it is lost."""
        self.now = max(self.now, now_s)
        complete = [number for number, message in self.held.items() if message.complete]
        self._settle_below(max(complete, default=-1) + 1, "gap")
        self._account_announced(self.next)

    # -- datagrams --------------------------------------------------------------------------------------------

    def receive(self, raw: bytes, now_s: float) -> None:
        """Hear one datagram; it is used, or dropped under exactly one reason (GC-MOD-5)."""
        self.pass_time(now_s)
        reason = self._receive(raw)
        if reason is None:
            self.used += 1
        else:
            self.dropped[reason] += 1
        self._account_announced(self.next)

    def _receive(self, raw: bytes) -> str | None:
        if len(raw) < (64 if self.limits.sealed else 56):
            return "too_short"
        d = Datagram.read(raw)
        if self.limits.sealed:
            refusal = self._not_verified(d, raw)
            payload = unseal(raw, self.secrets) or b"" if refusal is None else b""
        else:
            refusal = self._not_of_this_link(d, raw)
            payload = raw[48:-8]
        refusal = refusal or self._not_understood(d, payload)
        if refusal is not None:
            return refusal
        said = None if d.type == DATA else Announcement.read(payload)
        # What the followed session sent before is no sign that it lives (GC-SESS-16).
        own = self.in_session and d.epoch == self.followed
        refusal = self._sequence(d.sequence) if own else None
        refusal = refusal or self._who_has_the_link(d, said)
        if not own:
            refusal = refusal or self._sequence(d.sequence)
        if refusal is not None:
            return refusal
        if said is None:
            return self._symbol(d, payload)
        self._announced(d, said)
        return None

    def _not_understood(self, d: Datagram, payload: bytes) -> str | None:
        if d.type not in (STARTUP, DATA, HEARTBEAT, SHUTDOWN) or d.flags != int(self.limits.sealed):
            return "unknown_type"
        return "malformed" if malformed(d, payload) else None

    def _not_of_this_link(self, d: Datagram, raw: bytes) -> str | None:
        if d.magic != 0x4743:
            return "bad_magic"
        if d.version != 1:
            return "unsupported_version"
        if d.flags & 1:
            return "wrong_security_mode"
        if xxh3_64_digest(raw[:-8]) != raw[-8:]:
            return "bad_check"
        return self._foreign(d)

    def _foreign(self, d: Datagram) -> str | None:
        if d.link_id == self.limits.link_id:
            return None
        if self.foreign_raised is None or self.now >= self.foreign_raised + self.timeout:
            self.foreign_raised = self.now
            self._tell("foreign", d.link_id)
        return "foreign_link"

    def _not_verified(self, d: Datagram, raw: bytes) -> str | None:
        """GC-SEC-3."""
        if d.magic != 0x4743:
            return "bad_magic"
        if d.version != 1:
            return "unsupported_version"
        if self._foreign(d):
            return "foreign_link"
        reason = None
        if not d.flags & 1:
            reason = "wrong_security_mode"
        elif d.key_id not in self.secrets:
            reason = "unknown_key"
        elif unseal(raw, self.secrets) is None:
            reason = "bad_check"
        return self._unverified(d, reason) if reason else None

    def _unverified(self, d: Datagram, reason: str) -> str:
        """GC-SEC-8."""
        if self.state != "following":
            if self.unverified_heard is None:
                self._tell("unverified", reason, d.key_id)
            self.unverified_heard = self.now
        return reason

    def _clear_unverified(self) -> None:
        if self.unverified_heard is not None:
            self._tell("unverified cleared")
        self.unverified_heard = None

    # -- session.md -------------------------------------------------------------------------------------------

    def _who_has_the_link(self, d: Datagram, said: Announcement | None) -> str | None:
        if d.epoch < self.followed:
            if self.now > self.took_link + self.timeout:
                self.rival = (d.epoch, self.now)
                self._raise_conflict()
            return "stale_session"
        if d.epoch > self.followed:
            succession = said is not None and self.followed != 0 and said.previous_epoch == self.followed
            if self.state == "following" and not succession:
                self.rival = (d.epoch, self.now)
                return "conflict"
            self._give_link_to(d, said, succession=succession)
        elif not self.in_session:
            self._restored()
            self._join(d, said, resumed=True)
        else:
            self._restored()
        self.last_heard = self.now
        self._clear_unverified()
        if self.state != "closed":
            self.state = "following"
        if d.type == SHUTDOWN:
            self.state = "closed"
        if self.rival is not None:
            self._raise_conflict()
        return None

    def _give_link_to(self, d: Datagram, said: Announcement | None, *, succession: bool) -> None:
        if self.in_session:
            self._settle_below(max([self.known_sent, *(n + 1 for n in self.held)]), "session_ended")
            self._account_announced(self.next)
        self._leave_predecessor()
        if succession:
            reason = "SUCCESSION"
        elif self.state == "closed":
            reason = "AFTER_SHUTDOWN"
        elif self.state == "interrupted" and self.followed:
            reason = "AFTER_SILENCE"
        else:
            reason = "FIRST_HEARD"
        self._tell("followed", d.epoch, self.followed, reason)
        self._restored()
        self.followed = d.epoch
        self.took_link = self.now
        self.state = "following"
        if self.rival is not None and self.rival[0] <= d.epoch:
            self._forget_rival()  # it has the link now, or is stale: no newcomer any more
        if self.in_session:
            self._begin(d.epoch, horizon=0, next_message=0, records_seen=0)
        else:
            self._join(d, said, resumed=False)

    def _leave_predecessor(self) -> None:
        """GC-SESS-14; what is known of a stored session beyond its progress is not modelled here."""
        if self.in_session:
            epoch, next_message, ended = self.session, self.next, self.ended
        elif self.stored is not None:
            epoch, next_message, ended = self.stored.epoch, self.stored.next_message, False
        else:
            return
        self.predecessor = epoch
        if not ended:
            self._tell("cut off", epoch, next_message)

    def _restored(self) -> None:
        if self.state == "interrupted":
            self._tell("restored", self.now - self.last_heard)

    def _join(self, d: Datagram, said: Announcement | None, *, resumed: bool) -> None:
        """The first session since the egress started (GC-SESS-9, GC-DLV-11)."""
        stored = self.stored if resumed else None
        if stored is not None:
            self._tell("followed", d.epoch, d.epoch, "RESUMED")
        self._begin(
            d.epoch,
            horizon=d.sequence,
            next_message=stored.next_message if stored else 0,
            records_seen=stored.next_record if stored else 0,
        )
        if stored is not None:
            self.lost, self.joined_at = set(stored.lost), stored.joined_at
            self.ahead = {number: ahead for number, ahead in stored.ahead.items() if number >= self.next}
            self._settle_ahead()
        sent_before = said.messages_sent if said else d.message
        self._settle_below(sent_before, "while_away" if self.stored else "before_join")
        if self.stored is None:
            self.remembers_since = self.joined_at = sent_before

    def _begin(self, epoch: int, *, horizon: int, next_message: int, records_seen: int) -> None:
        self.missed_before += self._missed_in_session()
        self.in_session = True
        self.session = epoch
        self.ended = False
        self.said = None
        self.timeout = self.limits.interruption_timeout_s
        self.horizon = horizon
        self.highest = horizon - 1
        self.received = set()
        self.jump = None
        self.next = self.known_sent = self.remembers_since = next_message
        self.late_since = {}
        self.held = {}
        self.lost, self.late, self.joined_at, self.ahead = set(), OrderedDict(), 0, {}
        self.records_seen = records_seen

    def _raise_conflict(self) -> None:
        assert self.rival is not None
        session, raised = self.conflict_raised
        if not self.conflict and (session != self.followed or self.now >= raised + self.timeout):  # GC-LIM-3
            self.conflict_raised = (self.followed, self.now)
            self.conflict = True
            self._tell("conflict", self.followed, self.rival[0])

    def _forget_rival(self) -> None:
        if self.conflict:
            assert self.rival is not None
            self._tell("cleared", self.rival[0])
        self.rival = None
        self.conflict = False

    # -- delivery.md ------------------------------------------------------------------------------------------

    def _sequence(self, sequence: int) -> str | None:
        far = sequence > self.highest + self.limits.jump_unconfirmed_max
        confirmed = self.jump is not None and 0 < abs(sequence - self.jump) <= self.limits.sequence_window
        if far and not confirmed:
            self.jump = sequence
            return "unconfirmed_jump"
        if sequence <= self.highest - self.limits.sequence_window:
            return "too_late"
        if sequence in self.received:
            return "duplicate"
        self.received.add(sequence)
        self.highest = max(self.highest, sequence)
        return None

    def _missed_in_session(self) -> int:
        return self.highest + 1 - self.horizon - sum(s >= self.horizon for s in self.received)

    def _announced(self, d: Datagram, said: Announcement) -> None:
        if 0 < self.predecessor < said.previous_epoch:
            self._tell("cut off", said.previous_epoch, 0)
        self.predecessor = 0
        if self.said is None or said.messages_sent >= self.said.messages_sent:
            self.said = said
        self.timeout = said.interruption_timeout / 1000
        self._sent_below(said.messages_sent)
        if d.type == SHUTDOWN and not self.ended:
            self.ended = True
            self._tell("ended", d.epoch, said.messages_sent, said.records_sent)

    def _symbol(self, d: Datagram, payload: bytes) -> str | None:
        cut = (d.message_length, d.symbol_length, d.blocks, d.repair_symbols)
        size = self.charge(cut)
        if d.message_length > self.limits.message_bytes_max or size > self.limits.reassembly_bytes_max:
            self._sent_below(d.message + 1)  # this one is missing for good
            return "over_limit"
        self._sent_below(d.message)
        if d.message in self.ahead:
            return "not_needed"
        message = self.held.get(d.message)
        if message is not None and message.cut != cut:
            return "inconsistent_message"
        if message is None and (d.message < self.next or not self._make_room(d.message, size)):
            return self._late_symbol(d, cut, size, payload)
        if message is None:
            message = self.held[d.message] = _Incomplete(cut, d.symbols())
        if message.complete or d.symbol in message.present:
            return "not_needed"
        message.add(d.symbol, payload)
        self._deliver_ready()
        if self.limits.available:
            self._deliver_ahead(d.message)
        return None

    def _deliver_ahead(self, number: int) -> None:
        """GC-DLV-35."""
        symbols = self.held.get(number)
        if symbols is None or not symbols.complete:
            return
        del self.held[number]
        message = Message.open(symbols.bytes())
        if message is None:
            self.ahead[number] = Ahead(0, 0, (), damaged=True)
        else:
            self.messages_rebuilt += symbols.missing > 0
            self.symbols_rebuilt += symbols.missing
            head = (self.session, number, message.first_record, message.record_count, message.runs)
            self._tell("ahead", *head, self._before(message), message.body)
            self.ahead[number] = Ahead(message.first_record, message.record_count, message.runs)
        while self.ahead and self.held_bytes + self.ahead_bytes + self.late_bytes > self.limits.reassembly_bytes_max:
            self._give_way()

    def _before(self, message: Message) -> dict[StreamPartition, int]:
        """Up to which position the records of this message were delivered by an earlier session."""
        already: dict[StreamPartition, int] = {}
        for stream, partition, previous, first, _, count, _, continues, chain in message.runs:
            session, of_chain, delivered = self.positions.get((stream, partition), (0, 0, -1))
            same_chain = session == self.session and of_chain == chain
            if session and previous != -1 and (same_chain or continues) and count and delivered >= first:
                already[stream, partition] = delivered
        return already

    def _give_way(self) -> None:
        """What is lost is forgotten, or the next message is given up."""
        if self.late:
            self.late.popitem(last=False)
        else:
            self._give_up_next("overflow")
            self._deliver_ready()

    def _late_symbol(self, d: Datagram, cut: tuple[int, ...], size: int, payload: bytes) -> str | None:
        """GC-DLV-31, GC-DLV-32."""
        if d.message not in self.lost:
            return "not_needed"
        message = self.late.get(d.message)
        if message is None:
            limits = self.limits
            bytes_owed, owed = self.held_bytes + self.ahead_bytes, len(self.held) + len(self.ahead)
            if bytes_owed + size > limits.reassembly_bytes_max or owed >= limits.messages_held_max:
                return "over_limit"
            while not self._room_for(size):
                self.late.popitem(last=False)
            message = self.late[d.message] = _Incomplete(cut, d.symbols())
        elif message.cut != cut:
            return "inconsistent_message"
        self.late.move_to_end(d.message)
        if d.symbol in message.present:
            return "not_needed"
        message.add(d.symbol, payload)
        if message.complete:
            self._deliver_late(d.message)
        return None

    def _deliver_late(self, number: int) -> None:
        symbols = self.late.pop(number)
        self.lost.remove(number)
        message = Message.open(symbols.bytes())
        if message is None:
            return
        self.messages_rebuilt += symbols.missing > 0
        self.symbols_rebuilt += symbols.missing
        self._account_records(message.first_record)
        self.records_seen = max(self.records_seen, message.first_record + message.record_count)
        head = (self.session, number, message.first_record, message.record_count, message.runs)
        self._tell("late", *head, self._chain_late(number, message), message.body)

    def _room_for(self, size: int) -> bool:
        return (
            self.held_bytes + self.ahead_bytes + self.late_bytes + size <= self.limits.reassembly_bytes_max
            and len(self.held) + len(self.ahead) + len(self.late) < self.limits.messages_held_max
        )

    def _make_room(self, number: int, size: int) -> bool:
        """Room for a new message (GC-DLV-9); False when that message itself had to be given up."""
        while (self.held or self.late or self.ahead) and not self._room_for(size):
            self._give_way()
            if number < self.next:
                return False
        return True

    def _sent_below(self, number: int) -> None:
        """The messages below `number` were sent: those that are missing are late from now on (GC-DLV-8)."""
        for late in range(self.known_sent, number):
            self.late_since[late] = self.now
        self.known_sent = max(self.known_sent, number)

    def _settle_below(self, number: int, cause: str) -> None:
        while self.next < number:
            self._give_up_next(cause)
            self._deliver_ready()

    def _give_up_next(self, cause: str) -> None:
        incomplete = self.held.pop(self.next, None)
        if incomplete is not None:
            self.late[self.next] = incomplete
        self._tell("lost", self.session, self.next, self.next, cause)
        self.lost.add(self.next)
        self.next += 1
        self._bound_lost()

    def _bound_lost(self) -> None:
        """GC-DLV-32: of too many ranges, the one with the lowest numbers is forgotten."""
        while sum(number - 1 not in self.lost for number in self.lost) > self.limits.lost_ranges_max:
            number = min(self.lost)
            while number in self.lost:
                self.lost.remove(number)
                self.late.pop(number, None)
                number += 1

    def _deliver_ready(self) -> None:
        while True:
            self._settle_ahead()
            if self.next not in self.held or not self.held[self.next].complete:
                return
            number, self.next = self.next, self.next + 1
            symbols = self.held.pop(number)
            message = Message.open(symbols.bytes())
            if message is None:
                self._tell("lost", self.session, number, number, "damaged")
                continue
            self.messages_rebuilt += symbols.missing > 0
            self.symbols_rebuilt += symbols.missing
            self._account_announced(number)
            self._account_records(message.first_record)
            self.records_seen = message.first_record + message.record_count
            self._tell(
                "delivered",
                self.session,
                number,
                message.first_record,
                message.record_count,
                message.runs,
                self._chain(number, message),
                message.body,
            )

    def _settle_ahead(self) -> None:
        """What was delivered ahead has its turn."""
        while self.next in self.ahead:
            number, self.next = self.next, self.next + 1
            ahead = self.ahead.pop(number)
            if ahead.damaged:
                self._tell("lost", self.session, number, number, "damaged")
                continue
            self._account_announced(number)
            self._account_records(ahead.first_record)
            self.records_seen = ahead.first_record + ahead.record_count
            self._chain(number, Message(BATCH, ahead.first_record, ahead.record_count, ahead.runs, b""))
            self._tell("settled", self.session, number, self.records_seen)

    def _chain(self, number: int, message: Message) -> dict[StreamPartition, int]:
        """The table of spec/delivery.md, "Positions"; what was delivered before, by stream partition."""
        already: dict[StreamPartition, int] = {}
        for place, run in enumerate(message.runs):
            self._chain_run(number, place, run, already)
        self._bound_positions(number)
        return already

    def _chain_late(self, number: int, message: Message) -> dict[StreamPartition, int]:
        """GC-DLV-33: up to which position the journal decides, by stream partition."""
        judged: dict[StreamPartition, int] = {}
        for place, run in enumerate(message.runs):
            stream, partition, _, _, last, _, _, _, chain = run
            session, of_chain, delivered = self.positions.get((stream, partition), (0, 0, -1))
            if not session and chain < self.remembers_since:
                continue  # nobody knows how far it was delivered
            passed = of_chain > chain or (of_chain == chain and delivered >= last)
            if session == self.session and passed:
                judged[stream, partition] = max(last, judged.get((stream, partition), -1))
                continue
            already: dict[StreamPartition, int] = {}
            self._chain_run(number, place, run, already)
            self._bound_positions(number)
            for key, position in already.items():
                judged[key] = max(position, judged.get(key, -1))
        return {} if number < self.joined_at else judged

    def _chain_run(self, number: int, place: int, run: PlainRun, already: dict[StreamPartition, int]) -> None:
        stream, partition, previous, first, last, count, begun, continues, chain = run
        key = (stream, partition)
        session, of_chain, delivered = self.positions.get(key, (0, 0, -1))
        same_chain = session == self.session and of_chain == chain
        if session and previous != -1 and (same_chain or continues):
            if previous > delivered:
                self._tell("missing", self.session, stream, partition, delivered + 1, previous)
            if previous < delivered and count:
                already[key] = delivered
            delivered = max(delivered, last)
        else:
            owed_after = first - 1 if count else last
            if previous >= begun and (session or chain >= self.remembers_since):
                self._tell("missing", self.session, stream, partition, begun, previous)
                owed_after = begun - 1
            self.chains_begun[self.session, number, place] = owed_after
            delivered = last
        self.positions[key] = (self.session, chain, delivered)
        self.positions.move_to_end(key)

    def _bound_positions(self, number: int) -> None:
        while len(self.positions) > self.limits.positions_tracked_max:
            self.positions.popitem(last=False)
            self.remembers_since = number + 1

    def _account_announced(self, settled_below: int) -> None:
        if self.said is not None and self.said.messages_sent <= settled_below:
            self._account_records(self.said.records_sent)

    def _account_records(self, sent: int) -> None:
        if sent > self.records_seen:
            self._tell("records lost", self.session, sent - self.records_seen)
            self.records_seen = sent

    def _tell(self, *event: Any) -> None:
        self.events.append(event)


class SenderOracle:
    """Reads everything that one `LinkSender` sends, in order, and fails where it is not as specified.

    Args:
        link_id: Of the link.
        epoch: Of the session.
        previous_epoch: From the stored state; 0 without.
        mtu: As configured; IPv4.
        repair_share: As configured, in hundredths of a percent.
        heartbeat_s: The heartbeat interval.
        timeout_s: The interruption timeout.
        now_s: When the session begins.
        positions_tracked_max: Of the registry, as it is in the test.
        sealed: Whether the link is sealed. The datagrams that are read are not: whoever shows them has opened them.
    """

    def __init__(
        self,
        *,
        link_id: int,
        epoch: int,
        previous_epoch: int,
        mtu: int,
        repair_share: int,
        heartbeat_s: float,
        timeout_s: float,
        now_s: float,
        positions_tracked_max: int,
        sealed: bool = False,
    ) -> None:
        self.link_id = link_id
        self.sealed = sealed
        self.overhead = 64 if sealed else 56
        self.positions_tracked_max = positions_tracked_max
        self.epoch = epoch
        self.previous_epoch = previous_epoch
        self.mtu = mtu
        self.repair_share = repair_share
        self.heartbeat_s = heartbeat_s
        self.timeout_s = timeout_s
        self.began = now_s
        self.types: Counter[int] = Counter()
        """How many datagrams of each type were sent."""
        self.messages: list[Message] = []
        """The whole messages so far: the place is the number."""
        self.records = 0
        self.last_said_s = now_s
        """When it last said anything of itself."""
        self._first_said: Announcement | None = None
        self._symbols: list[bytes] = []
        self._unfinished: list[Message] = []
        """The message whose repair symbols are still to come; it may have arrived already."""
        self._chains: OrderedDict[StreamPartition, PlainRun] = OrderedDict()
        """The last run of each stream partition that is remembered, the latest last."""
        self._cut = (0, 0, 0)
        self._unsummarised: dict[StreamPartition, int] = {}
        self._last_batch_s: float | None = None

    def repeated(self) -> int:
        """A datagram of a message is sent again, whose sequence is this."""
        self.types[DATA] += 1
        return self.types.total() - 1

    def read(self, raw: bytes, now_s: float) -> None:
        """Check the next datagram."""
        assert len(raw) - 56 + self.overhead <= self.mtu - 28, "GC-WIRE-6"
        d = Datagram.read(raw)
        payload = raw[48:-8]
        assert (d.magic, d.version, d.flags, d.key_id) == (0x4743, 1, 0, 0), "GC-WIRE-1"
        assert (d.link_id, d.epoch) == (self.link_id, self.epoch), "GC-WIRE-1"
        assert xxh3_64_digest(raw[:-8]) == raw[-8:], "GC-WIRE-2"
        assert d.sequence == self.types.total(), "GC-WIRE-5"
        assert not malformed(d, payload)
        assert d.type == STARTUP or self.types[STARTUP] >= 3, "GC-SESS-2"
        assert not self.types[SHUTDOWN] or d.type == SHUTDOWN, "GC-SESS-4"
        self.types[d.type] += 1
        assert self.types[SHUTDOWN] <= 3, "GC-SESS-4"
        if d.type == DATA:
            self._read_symbol(d, payload, now_s)
        else:
            self._read_announcement(d.type, Announcement.read(payload), now_s)

    def _read_announcement(self, kind: int, said: Announcement, now_s: float) -> None:
        first = self._first_said = self._first_said or said
        assert said.previous_epoch == self.previous_epoch, "GC-SESS-2"
        assert said.messages_sent == len(self.messages) - len(self._unfinished)
        assert said.records_sent == self.records - sum(message.record_count for message in self._unfinished)
        assert attrs.astuple(said)[4:12] == attrs.astuple(first)[4:12], "GC-WIRE-8"
        assert (said.heartbeat_interval, said.interruption_timeout) == (self.heartbeat_s * 1000, self.timeout_s * 1000)
        assert (said.mtu, said.symbol_length_max) == (self.mtu, self.mtu - 28 - self.overhead)
        assert said.security_mode == int(self.sealed)
        block, repair = said.fec_source_symbols, said.fec_repair_symbols
        assert (block > 0) == (repair > 0) == (self.repair_share > 0)
        assert repair * 10_000 >= block * self.repair_share, "GC-FEC-5"
        assert block + repair <= 255
        if kind == SHUTDOWN:
            assert said.phase == CLOSING, "GC-SESS-4"
            assert not self._unsummarised, "GC-DLV-17"
        else:
            announcing = kind == STARTUP and not self.previous_epoch
            assert said.phase == (ANNOUNCING if announcing else ACTIVE), "GC-SESS-3"
        idle = not self._symbols and self._last_batch_s is not None and now_s >= self._last_batch_s + self.heartbeat_s
        assert not (kind == HEARTBEAT and idle and self._unsummarised), "GC-DLV-17"
        self.last_said_s = now_s

    def _read_symbol(self, d: Datagram, payload: bytes, now_s: float) -> None:
        assert self.previous_epoch or now_s >= self.began + self.timeout_s, "GC-SESS-3"
        assert d.message == len(self.messages) - len(self._unfinished), "GC-DLV-2"
        assert d.symbol == len(self._symbols), "GC-DLV-2"
        at_least = -(-d.message_length // (self.mtu - 28 - self.overhead))
        assert d.symbol_length == -(-d.message_length // at_least), "GC-DLV-2"
        self._cut = self._cut if d.symbol else (d.message_length, d.blocks, d.repair_symbols)
        assert (d.message_length, d.blocks, d.repair_symbols) == self._cut, "GC-DLV-2"
        assert self._first_said is not None
        assert d.blocks == -(-d.symbols() // (self._first_said.fec_source_symbols or 255)), "GC-FEC-1"
        assert d.repair_symbols * 10_000 >= -(-d.symbols() // d.blocks) * self.repair_share, "GC-FEC-5"
        assert d.repair_symbols <= self._first_said.fec_repair_symbols
        self._symbols.append(payload)
        if len(self._symbols) == d.symbols():
            self._read_message(d, now_s)
        if len(self._symbols) == d.symbols() + d.blocks * d.repair_symbols:
            source, repair = self._symbols[: d.symbols()], self._symbols[d.symbols() :]
            for r in {0, d.message % max(1, d.repair_symbols), d.repair_symbols - 1} if repair else ():  # a few of many
                for b in range(d.blocks):
                    owed = galois.repair_of_block(source[b :: d.blocks], r)
                    assert repair[r * d.blocks + b] == owed, "GC-FEC-2"
            self._symbols = []
            self._unfinished = []

    def _read_message(self, d: Datagram, now_s: float) -> None:
        """All source symbols were sent."""
        joined = b"".join(self._symbols)
        assert not any(joined[d.message_length :]), "GC-DLV-2"
        message = Message.open(joined[: d.message_length])
        assert message is not None, "GC-WIRE-10"
        assert message.first_record == self.records
        if message.kind == BATCH:
            self._last_batch_s = now_s
        for run in message.runs:
            stream, partition, previous, first, last, _, *chain = run
            before = self._chains.get((stream, partition))
            if message.kind == BATCH:
                begins = before is None or previous == -1 or first < before[6]
                assert chain == ([first, previous != -1, d.message] if begins or before is None else [*before[6:]])
                self._chains[stream, partition] = run
                self._chains.move_to_end((stream, partition))
                self._unsummarised[stream, partition] = last
            else:
                assert self._unsummarised.pop((stream, partition)) == last, "GC-DLV-17"
                assert before is not None
                assert chain == [*before[6:]]
        while len(self._chains) > self.positions_tracked_max and next(iter(self._chains)) not in self._unsummarised:
            self._chains.popitem(last=False)
        self._unfinished = [message]
        self.messages.append(message)
        self.records += message.record_count
