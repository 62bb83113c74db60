"""Where each stream partition stands: what was sent last, what was delivered last (spec/delivery.md, "Positions")."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import structs

from gapconn.protocol.envelope import Run
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX

StreamPartition = tuple[str, int]

NO_POSITION = -1

_SUMMARY_BYTES = 65_536
"""Positions in one summary: small, so that little is lost with it."""
_ARRAY_BYTES_MAX = 5
"""MessagePack's head of an array or a string of any length."""
_RUN_BYTES_MAX = 1 + _ARRAY_BYTES_MAX + 7 * 9 + 1
"""A run in MessagePack, without the name of its stream: an array of a string, seven integers and a boolean."""


class SentPositions:
    """Sending half: the chain of positions that was sent in each stream partition (GC-DLV-16, GC-DLV-17)."""

    def __init__(self) -> None:
        self._chains: OrderedDict[StreamPartition, Run] = OrderedDict()
        """The last run of each chain, the one used longest ago first: the receiving half forgets in the same order."""
        self._unsummarised: dict[StreamPartition, None] = {}

    def __bool__(self) -> bool:
        return bool(self._unsummarised)

    def chained(self, number: int, runs: Iterable[Run]) -> list[Run]:
        """The runs of message `number` with the chains that they belong to (spec/delivery.md, "Positions")."""
        chains: dict[StreamPartition, Run] = {}
        chained = []
        for run in runs:
            key = (run.stream, run.partition)
            before = chains.get(key) or self._chains.get(key)
            if before is None or run.previous == NO_POSITION or run.first < before.begun:
                begun, continues, chain = run.first, run.previous != NO_POSITION, number
            else:
                begun, continues, chain = before.begun, before.continues, before.chain
            chains[key] = structs.replace(run, begun=begun, continues=continues, chain=chain)
            chained.append(chains[key])
        return chained

    def sent(self, chained: Iterable[Run]) -> None:
        """Note that these runs were sent."""
        for run in chained:
            key = (run.stream, run.partition)
            self._chains[key] = run
            self._chains.move_to_end(key)
            self._unsummarised.pop(key, None)
            self._unsummarised[key] = None
        self._forget()

    @property
    def full(self) -> bool:
        """Whether as many are noted as may be: a summary is due."""
        return len(self._unsummarised) >= POSITIONS_TRACKED_MAX

    def take_summary(self, bytes_max: int) -> list[list[Run]]:
        """What `positions` messages are to say now; then forget that it is to be said.

        Args:
            bytes_max: What the encoded positions of one message may take; a hundred KB or so are enough for any.

        Returns:
            A list of runs for each message.
        """
        messages: list[list[Run]] = []
        room = 0
        for key in self._unsummarised:
            run = self._chains[key]
            size = len(run.stream.encode()) + _RUN_BYTES_MAX
            if size > room:
                messages.append([])
                room = min(bytes_max, _SUMMARY_BYTES) - _ARRAY_BYTES_MAX
            messages[-1].append(structs.replace(run, previous=run.last, first=run.last, count=0))
            room -= size
        self._unsummarised.clear()
        self._forget()
        return messages

    def _forget(self) -> None:
        """Keep to the limit; what is still to be said is kept until then."""
        while len(self._chains) > POSITIONS_TRACKED_MAX and (key := next(iter(self._chains))) not in self._unsummarised:
            del self._chains[key]


class Standing(NamedTuple):
    """How far a stream partition was delivered."""

    epoch: int
    """The session that delivered last."""
    chain: int
    """The chain of that session: the number of the message with which it began."""
    position: int
    """The last position delivered."""


class DeliveredPositions:
    """Receiving half: how far each stream partition was delivered, bounded (GC-DLV-14, GC-DLV-15)."""

    def __init__(self, delivered: Mapping[StreamPartition, Standing] | None = None) -> None:
        self._delivered: OrderedDict[StreamPartition, Standing] = OrderedDict(delivered or {})
        self._epoch = 0
        self._known_from = 0

    def follow(self, epoch: int, known_from: int) -> None:
        """What comes now is of the session `epoch`.

        Args:
            epoch: The session.
            known_from: A message: of the chains that began in it or later, everything is known that arrived. Of one
                that began earlier something may have been delivered that is not known here.
        """
        self._epoch = epoch
        self._known_from = known_from

    def settle(
        self, number: int, runs: Iterable[Run]
    ) -> tuple[list[tuple[StreamPartition, int, int]], dict[StreamPartition, int]]:
        """Take in the runs of the next message, which has this number.

        Returns:
            The missing ranges, as (stream partition, first, last), and by stream partition the position up to which the
            message's records were delivered before.
        """
        missing: list[tuple[StreamPartition, int, int]] = []
        already: dict[StreamPartition, int] = {}
        for run in runs:
            key = (run.stream, run.partition)
            known = self._delivered.get(key)
            last = run.last
            in_chain = known is not None and (known.epoch, known.chain) == (self._epoch, run.chain)
            if known is not None and run.previous != NO_POSITION and (run.continues or in_chain):
                if run.previous > known.position:
                    missing.append((key, known.position + 1, run.previous))
                elif run.previous < known.position:
                    if run.count:
                        already[key] = max(already.get(key, NO_POSITION), known.position)
                    last = max(last, known.position)
            elif run.previous >= run.begun and (known is not None or run.chain >= self._known_from):
                # What is known is of another chain, or nothing is: this one's beginning did not arrive.
                missing.append((key, run.begun, run.previous))
            self._delivered[key] = Standing(self._epoch, run.chain, last)
            self._delivered.move_to_end(key)
        while len(self._delivered) > POSITIONS_TRACKED_MAX:
            self._delivered.popitem(last=False)
            self._known_from = number + 1
        return missing, already

    def delivered_before(self, runs: Iterable[Run]) -> dict[StreamPartition, int]:
        """By stream partition, the position up to which records of a message were delivered before, that comes ahead of
        earlier ones of its session: those can only have records before its own."""
        already: dict[StreamPartition, int] = {}
        for run in runs:
            key = (run.stream, run.partition)
            known = self._delivered.get(key)
            in_chain = known is not None and (known.epoch, known.chain) == (self._epoch, run.chain)
            if known is None or run.previous == NO_POSITION or not (run.continues or in_chain):
                continue
            if run.count and known.position >= run.first:
                already[key] = max(already.get(key, NO_POSITION), known.position)
        return already

    def settle_late(
        self, number: int, runs: Iterable[Run]
    ) -> tuple[list[tuple[StreamPartition, int, int]], dict[StreamPartition, int]]:
        """Take in the runs of a message that comes late (GC-DLV-33).

        What is beyond the last position delivered is settled as always. What is not was reported as missing, or was
        delivered before: whoever knows which, judges it.

        Returns:
            As `settle`; by stream partition, the position up to which somebody else has to judge.
        """
        missing: list[tuple[StreamPartition, int, int]] = []
        judged: dict[StreamPartition, int] = {}
        for run in runs:
            key = (run.stream, run.partition)
            known = self._delivered.get(key)
            if known is None and run.chain < self._known_from:
                continue  # later ones may have been delivered: where it stands is not to be learned from an old message
            if known is None or known.epoch != self._epoch or known.chain < run.chain:
                behind = False
            else:
                behind = known.chain > run.chain or run.last <= known.position
            if behind:
                judged[key] = max(judged.get(key, NO_POSITION), run.last)
                continue
            holes, already = self.settle(number, [run])
            missing += holes
            for place, position in already.items():
                judged[place] = max(judged.get(place, NO_POSITION), position)
        return missing, judged

    def of(self, runs: Iterable[Run]) -> dict[StreamPartition, Standing]:
        """How far the stream partitions of these runs were delivered."""
        keys = dict.fromkeys((run.stream, run.partition) for run in runs)
        return {key: self._delivered[key] for key in keys if key in self._delivered}
