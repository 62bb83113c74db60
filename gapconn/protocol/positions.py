"""Where each stream partition stands: what was sent last, what was delivered last (spec/delivery.md, "Positions")."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from gapconn.protocol.envelope import Run
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX

StreamPartition = tuple[str, int]

NO_POSITION = -1

_SUMMARY_BYTES = 65_536
"""Positions in one summary: small, so that little is lost with it."""
_ARRAY_BYTES_MAX = 5
"""MessagePack's head of an array or a string of any length."""
_RUN_BYTES_MAX = 1 + _ARRAY_BYTES_MAX + 5 * 9
"""A run in MessagePack, without the name of its stream: an array of a string and five integers."""


class SentPositions:
    """Sending half: the last position sent per stream partition, since the last summary (GC-DLV-17)."""

    def __init__(self) -> None:
        self._unsummarised: dict[StreamPartition, int] = {}

    def __bool__(self) -> bool:
        return bool(self._unsummarised)

    def sent(self, runs: Iterable[Run]) -> None:
        """Note that these runs were sent."""
        for run in runs:
            self._unsummarised[run.stream, run.partition] = run.last

    @property
    def full(self) -> bool:
        """Whether as many are noted as may be: a summary is due."""
        return len(self._unsummarised) >= POSITIONS_TRACKED_MAX

    def take_summary(self, bytes_max: int) -> list[list[Run]]:
        """What `positions` messages are to say now; then forget it.

        Args:
            bytes_max: What the encoded positions of one message may take; a hundred KB or so are enough for any.

        Returns:
            A list of runs for each message.
        """
        messages: list[list[Run]] = []
        room = 0
        for (stream, partition), last in self._unsummarised.items():
            size = len(stream.encode()) + _RUN_BYTES_MAX
            if size > room:
                messages.append([])
                room = min(bytes_max, _SUMMARY_BYTES) - _ARRAY_BYTES_MAX
            messages[-1].append(Run(stream, partition, last, last, last, 0))
            room -= size
        self._unsummarised.clear()
        return messages


class DeliveredPositions:
    """Receiving half: the last position delivered per stream partition, bounded (GC-DLV-14, GC-DLV-15)."""

    def __init__(self, delivered: Mapping[StreamPartition, int] | None = None) -> None:
        self._delivered: OrderedDict[StreamPartition, int] = OrderedDict(delivered or {})

    def settle(self, runs: Iterable[Run]) -> tuple[list[tuple[StreamPartition, int, int]], dict[StreamPartition, int]]:
        """Take in the runs of the next message.

        Returns:
            The missing ranges, as (stream partition, first, last), and by stream partition the position up to which the
            message's records were delivered before.
        """
        missing: list[tuple[StreamPartition, int, int]] = []
        already: dict[StreamPartition, int] = {}
        for run in runs:
            key = (run.stream, run.partition)
            delivered = self._delivered.get(key)
            last = run.last
            if delivered is not None and run.previous != NO_POSITION:
                if run.previous > delivered:
                    missing.append((key, delivered + 1, run.previous))
                elif run.previous < delivered:
                    if run.count:
                        already[key] = max(already.get(key, NO_POSITION), delivered)
                    last = max(last, delivered)
            self._delivered[key] = last
            self._delivered.move_to_end(key)
        while len(self._delivered) > POSITIONS_TRACKED_MAX:
            self._delivered.popitem(last=False)
        return missing, already

    def of(self, runs: Iterable[Run]) -> dict[StreamPartition, int]:
        """The last position delivered, for the stream partitions of these runs."""
        keys = dict.fromkeys((run.stream, run.partition) for run in runs)
        return {key: self._delivered[key] for key in keys if key in self._delivered}
