"""Where each stream partition stands: what was sent last, what was delivered last (spec/delivery.md, "Positions")."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from gapconn.protocol.envelope import Run
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX

StreamPartition = tuple[str, int]

NO_POSITION = -1


class SentPositions:
    """Sending half: the last position sent per stream partition, since the last summary (GC-DLV-17)."""

    RUNS_PER_SUMMARY = 1_000

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

    def take_summary(self) -> list[list[Run]]:
        """What `positions` messages are to say now, a list of runs for each message; then forget it."""
        runs = [Run(s, p, last, last, last, 0) for (s, p), last in self._unsummarised.items()]
        self._unsummarised.clear()
        return [runs[i : i + self.RUNS_PER_SUMMARY] for i in range(0, len(runs), self.RUNS_PER_SUMMARY)]


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
