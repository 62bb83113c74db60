"""Faults for datagrams: what goes wrong (`FaultPlan`), carried out without sockets and clocks (`Faults`).

What happens to the n-th datagram depends on the seed and on n alone, not on how the kernel groups datagrams. Every
datagram is accounted for in `GapCounts`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Final

import attrs

_TRAIN_DATAGRAMS_MAX: Final = 64
"""Linux takes at least so many segments in one send."""
_TRAIN_BYTES_MAX: Final = 65_000
_DATAGRAM_BYTES_MAX: Final = 65_535
_HEADERS_BYTES: Final = 28
"""IPv4 and UDP headers, which a link of a given rate carries too."""
_HELD_MAX: Final = 4096


def _probability(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} is a probability: 0 to 1, not {value}")


def _not_negative(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be 0 or more, not {value}")


@attrs.frozen(kw_only=True)
class Outage:
    """A time in which nothing passes."""

    start_s: float = attrs.field(validator=_not_negative)
    """Seconds after the relay was started."""
    duration_s: float = attrs.field(validator=_not_negative)


@attrs.frozen(kw_only=True)
class FaultPlan:
    """What goes wrong, how often. Without arguments nothing does.

    A datagram is dropped, held back, or doubled, at most one of these, so the three probabilities add up to 1 at most.
    Corruption is drawn apart.
    """

    drop: float = attrs.field(default=0.0, validator=_probability)
    burst: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """So many consecutive datagrams are lost,"""
    burst_every: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    """and then so many are not, give or take a half at random."""
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    """The copy follows directly, and is never corrupted."""
    reorder: float = attrs.field(default=0.0, validator=_probability)
    """The datagram is held back until 1 to `reorder_depth` later ones have passed, `reorder_hold_s` at most."""
    reorder_depth: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    reorder_hold_s: float = attrs.field(default=0.005, validator=_not_negative)
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    """One bit of the payload is flipped; an empty datagram stays as it is."""
    delay_s: float = attrs.field(default=0.0, validator=_not_negative)
    jitter_s: float = attrs.field(default=0.0, validator=_not_negative)
    """At most this much is added to `delay_s`, at random. It never changes the order: `reorder` does."""
    rate_bps: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Bits per second, IP and UDP headers included; 0 is no limit."""
    queue_bytes: int = attrs.field(default=64 << 20, validator=attrs.validators.ge(_DATAGRAM_BYTES_MAX))
    """What may wait for the rate and the delay; beyond it, the newest is thrown away (`GapCounts.overrun`)."""
    outages: Sequence[Outage] = ()
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.drop + self.duplicate + self.reorder > 1 + 1e-9:
            raise ValueError("drop, duplicate and reorder are exclusive: together they must be at most 1")


@attrs.define(kw_only=True)
class GapCounts:
    """What a gap did, in datagrams. At the end nothing waits, and then

    `received + duplicated == forwarded + dropped + cut + overrun + unsent`.
    """

    received: int = 0
    forwarded: int = 0
    """Handed to the kernel for the target."""
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    """Held back, and overtaken by at least one later datagram."""
    corrupted: int = 0
    """Came out with one bit flipped."""
    cut: int = 0
    """Lost while the link was off: in an outage, or by `GapSwitch`."""
    overrun: int = 0
    """Lost because the queue was full: more came than `rate_bps` lets through."""
    unsent: int = 0
    """Refused by the kernel on the way out."""
    kernel_dropped: int = 0
    """Lost before the gap saw them, because its receive buffer was full; not in `received`. The kernel counts buffers:
    with GSO one is up to 64 datagrams. Where a test counts exactly, this must be 0."""


@attrs.define
class GapSwitch:
    """Takes the link away and gives it back; and the same for the faults of the plan."""

    on: bool = True
    faults: bool = True
    """While off, datagrams pass as they come; rate, delay and outages stay as planned."""

    def toggle(self) -> None:
        self.on = not self.on

    def toggle_faults(self) -> None:
        self.faults = not self.faults


@attrs.define
class Train:
    """Datagrams that travel in one send: all have `segment_bytes`, but the last one may have less."""

    parts: list[bytes | memoryview]
    """Whole datagrams, one after the other; any number of them in each part."""
    segment_bytes: int
    size_bytes: int
    count: int

    @property
    def is_open(self) -> bool:
        """Whether another datagram may follow."""
        return 0 < self.size_bytes == self.segment_bytes * self.count

    def datagrams(self) -> Iterator[memoryview]:
        """One by one."""
        step = max(1, self.segment_bytes)
        for part in self.parts:
            view = memoryview(part)
            for start in range(0, len(view) or 1, step):
                yield view[start : start + step]


class _Marks:
    """The numbers of the datagrams that something happens to, each datagram with the same probability.

    The gaps between them are drawn (they are distributed geometrically), so that the datagrams between cost nothing.
    Each marked number has a `draw` of its own, which decides everything else about what happens to it.
    """

    def __init__(self, rng: random.Random, probability: float) -> None:
        self._rng = rng
        self._log_pass = -math.inf if probability >= 1 else math.log1p(-probability)
        self.next: float = -1
        self.draw = 0.0
        """From 0 to below 1, uniform."""
        self.advance()

    def advance(self) -> None:
        """Go to the next marked number."""
        if self._log_pass == 0:
            self.next = math.inf
        else:
            self.next += 1 + math.floor(math.log(1.0 - self._rng.random()) / self._log_pass)
            self.draw = self._rng.random()

    def skip_to(self, number: int) -> None:
        """Go to the first marked number that is not below `number`."""
        while self.next < number:
            self.advance()


class _Bursts:
    """The numbers of the datagrams that are lost together."""

    def __init__(self, rng: random.Random, length: int, every: int) -> None:
        self._rng = rng
        self._length = length
        self._every = every
        self.first: float = math.inf
        """Of this burst, or of the next one."""
        self.end: float = math.inf
        """Behind its last."""
        if length:
            self._begin_after(0)

    def _begin_after(self, number: float) -> None:
        self.first = number + self._rng.randint(self._every - self._every // 2, self._every + self._every // 2)
        self.end = self.first + self._length

    def skip_to(self, number: int) -> None:
        """Go to the first burst that does not end before `number`."""
        while self.end <= number:
            self._begin_after(self.end)


class _Fate(Enum):
    DROP = "drop"
    HOLD = "reorder"
    DOUBLE = "duplicate"


@attrs.define
class _Held:
    data: bytes
    passed_before: int
    """How many datagrams had passed when this one was held back."""
    release_at: int
    """It follows when so many have passed,"""
    due: float
    """or at this time."""


class Faults:
    """A plan carried out: datagrams in, trains of datagrams out. Knows neither sockets nor clocks.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self, plan: FaultPlan, counts: GapCounts, *, started_at: float, switch: GapSwitch) -> None:
        self._plan = plan
        self._counts = counts
        self._switch = switch
        self._outages = [(started_at + o.start_s, started_at + o.start_s + o.duration_s) for o in plan.outages]
        self._fate_total = min(1.0, plan.drop + plan.reorder + plan.duplicate)
        self._fated = _Marks(random.Random(f"{plan.seed} fate"), self._fate_total)
        self._corrupted = _Marks(random.Random(f"{plan.seed} corrupt"), plan.corrupt)
        self._bursts = _Bursts(random.Random(f"{plan.seed} burst"), plan.burst, plan.burst_every)
        self._jitter_rng = random.Random(f"{plan.seed} jitter")
        self._passed = 0
        self._held: list[_Held] = []
        self._next_release = math.inf
        self._trains: list[Train] = []
        self._is_queued = bool(plan.delay_s or plan.jitter_s or plan.rate_bps)
        self._queue: deque[tuple[float, Train]] = deque()
        self._queued_bytes = 0
        self._link_free_at = -math.inf
        self._last_due = -math.inf

    @property
    def due(self) -> float:
        """When `outgoing` will have something, if nothing comes in before; infinity: never."""
        held = min((held.due for held in self._held), default=math.inf)
        return min(held, self._queue[0][0]) if self._queue else held

    def incoming(self, data: memoryview, segment_bytes: int, now: float) -> None:
        """Take datagrams that lie one after the other in `data`, each of `segment_bytes` but the last one.

        `data` must stay as it is until the next call of `outgoing`, whose trains may refer to it, is worked off.
        """
        size = len(data)
        count = -(-size // segment_bytes) if size else 1
        first = self._counts.received
        end = first + count
        self._counts.received = end
        is_off = self._is_off(now)
        if is_off or not self._switch.faults:
            self._fated.skip_to(end)
            self._corrupted.skip_to(end)
            self._bursts.skip_to(end)
        if is_off:
            self._counts.cut += count
            return
        number = first
        while number < end:
            # What nothing happens to travels as it came; most of it does.
            untouched = min(self._untouched(number), end - number)
            start, stop = (number - first) * segment_bytes, (number - first + max(untouched, 1)) * segment_bytes
            part = data[start:stop]
            if untouched:
                self._passed += untouched
                self._put(part, segment_bytes if untouched > 1 else len(part), untouched)
            else:
                self._one(number, part, now)
            number += max(untouched, 1)

    def _untouched(self, number: int) -> int:
        """How many datagrams from `number` on just pass; of those that come after a held one at most up to it."""
        touched = min(self._fated.next, self._corrupted.next, max(self._bursts.first, number))
        return int(min(touched - number, self._next_release - self._passed - 1, _TRAIN_DATAGRAMS_MAX))

    def outgoing(self, now: float) -> list[Train]:
        """What is to be sent at this time."""
        if self._held:
            self._release(lambda held: held.due <= now)
        trains, self._trains = self._trains, []
        if not self._is_queued:
            return trains
        for train in trains:
            self._line_up(train, now)
        due = []
        while self._queue and self._queue[0][0] <= now:
            _, train = self._queue.popleft()
            self._queued_bytes -= train.size_bytes
            due.append(train)
        return due

    def flush(self) -> list[Train]:
        """Everything that was held back or waits, at once: the end."""
        queued = [train for _, train in self._queue]
        self._queue.clear()
        self._queued_bytes = 0
        self._release(lambda held: True)
        trains, self._trains = self._trains, []
        return queued + trains

    def _is_off(self, now: float) -> bool:
        return not self._switch.on or any(start <= now < end for start, end in self._outages)

    def _one(self, number: int, datagram: memoryview, now: float) -> None:
        self._bursts.skip_to(number)
        fate, depth = None, 0
        if number == self._fated.next:
            fate, depth = self._fate(self._fated.draw * self._fate_total)
            self._fated.advance()
        flip = None
        if number == self._corrupted.next:
            flip = self._corrupted.draw
            self._corrupted.advance()
        if fate is _Fate.DROP or number >= self._bursts.first:
            self._counts.dropped += 1
            return
        came_out = datagram if flip is None or not datagram else self._with_a_bit_flipped(datagram, flip)
        if fate is _Fate.HOLD and len(self._held) < _HELD_MAX:
            self._hold(bytes(came_out), depth, now)
            return
        self._put(came_out, len(came_out), 1)
        self._passed += 1
        if fate is _Fate.DOUBLE:
            self._counts.duplicated += 1
            self._put(datagram, len(datagram), 1)
        if self._passed >= self._next_release:
            self._release(lambda held: held.release_at <= self._passed)

    def _fate(self, draw: float) -> tuple[_Fate, int]:
        """What happens, and for HOLD the depth; `draw` is uniform below the sum of the three probabilities."""
        plan = self._plan
        if draw < plan.drop:
            return _Fate.DROP, 0
        if draw < plan.drop + plan.reorder:
            return _Fate.HOLD, 1 + int((draw - plan.drop) / plan.reorder * plan.reorder_depth)
        return _Fate.DOUBLE, 0

    def _with_a_bit_flipped(self, datagram: memoryview, draw: float) -> memoryview:
        self._counts.corrupted += 1
        flipped = bytearray(datagram)
        bit = int(draw * 8 * len(flipped))
        flipped[bit // 8] ^= 1 << bit % 8
        return memoryview(flipped)

    def _hold(self, data: bytes, depth: int, now: float) -> None:
        release_at = self._passed + depth
        self._held.append(
            _Held(data, passed_before=self._passed, release_at=release_at, due=now + self._plan.reorder_hold_s)
        )
        self._next_release = min(self._next_release, release_at)

    def _release(self, is_released: Callable[[_Held], bool]) -> None:
        kept = []
        for held in self._held:
            if is_released(held):
                self._counts.reordered += self._passed > held.passed_before
                self._put(held.data, len(held.data), 1)
            else:
                kept.append(held)
        self._held = kept
        self._next_release = min((held.release_at for held in kept), default=math.inf)

    def _put(self, part: bytes | memoryview, segment_bytes: int, count: int) -> None:
        """Append datagrams to the last train, or begin a new one."""
        size = len(part)
        train = self._trains[-1] if self._trains else None
        if (
            train is not None
            and train.is_open
            and size
            and (segment_bytes == train.segment_bytes or (count == 1 and size < train.segment_bytes))
            and train.count + count <= _TRAIN_DATAGRAMS_MAX
            and train.size_bytes + size <= _TRAIN_BYTES_MAX
        ):
            train.parts.append(part)
            train.size_bytes += size
            train.count += count
        else:
            self._trains.append(Train([part], segment_bytes, size, count))

    def _line_up(self, train: Train, now: float) -> None:
        """Queue a copy of `train` until its last bit would have come out at the far end."""
        if self._queued_bytes + train.size_bytes > self._plan.queue_bytes:
            self._counts.overrun += train.count
            return
        due = now
        if self._plan.rate_bps:
            bits = 8 * (train.size_bytes + _HEADERS_BYTES * train.count)
            due = self._link_free_at = max(self._link_free_at, now) + bits / self._plan.rate_bps
        due += self._plan.delay_s + self._jitter_rng.uniform(0, self._plan.jitter_s)
        self._last_due = max(self._last_due, due)
        self._queue.append((self._last_due, attrs.evolve(train, parts=[b"".join(train.parts)])))
        self._queued_bytes += train.size_bytes
