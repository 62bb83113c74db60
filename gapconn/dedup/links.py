"""What came over each link, and whether one of them has failed in silence.

A link that brings nothing is told from a time without data by the other links: it is *silent* when others have brought
something new and it has brought nothing since. With origin ids it is also known how far a link is behind: it *lags* by
the offsets between what it brought last of each source partition and what the first link brought.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

import attrs

TRAIL_MAX = 256
"""Marks that are kept of the way that a source partition went."""


class Alarm(Enum):
    """What is wrong with a link."""

    SILENT = "link_silent"
    LAGGING = "link_lagging"


@attrs.define
class LinkCounts:
    """What came over one link."""

    records: int = 0
    first: int = 0
    """Of them, those that no other link had brought before."""
    repeats: int = 0
    again: int = 0
    """Of the repeats, those that this very link had brought before, or gone past: sent again by its ingress, or the
    source topic was made anew and counts from 0."""
    late: int = 0
    """Of the first ones, those that filled a hole behind later records."""
    unidentified: int = 0
    last_s: float | None = None
    """When it brought something last, by the clock of the service; None when it never did."""
    missed_since: int = 0
    """New records that other links have brought since then."""
    missed_since_s: float = math.inf
    """When the first of those came."""
    lag_offsets: int = 0
    lag_s: float = 0.0
    alarms: dict[Alarm, str] = attrs.field(factory=dict)
    """The alarms that stand, each with a sentence."""


@attrs.define
class Trail:
    """How far each link has come in one source partition, and when the first of them was where."""

    base: int
    """Just below the first offset that was seen."""
    highs: dict[str, int] = attrs.field(factory=dict)
    _marks: list[tuple[float, int]] = attrs.field(factory=list)
    """Times, and the highest offset at that time; the oldest first."""

    @property
    def front(self) -> int:
        """The highest offset that any link has brought."""
        return max(self.highs.values(), default=self.base)

    def brought(self, link: str, offset: int) -> None:
        """A link has brought `offset`, perhaps not for the first time."""
        if offset > self.highs.get(link, -1):
            self.highs[link] = offset

    def passed(self, links: Iterable[str]) -> int:
        """The offset that all of these links are known to have reached; -1 where one has brought nothing yet."""
        return min((self.highs.get(link, -1) for link in links), default=self.front)

    def mark(self, now_s: float, links: Sequence[str]) -> None:
        """Remember where the first link is now; forget what all have reached."""
        reached = self.passed(links)
        while self._marks and self._marks[0][1] <= reached:
            self._marks.pop(0)
        if self.front > reached and (not self._marks or self._marks[-1][1] < self.front):
            self._marks.append((now_s, self.front))
            if len(self._marks) > TRAIL_MAX:
                # Every other one: ages stay right to twice the distance, and the oldest stays.
                del self._marks[1:-1:2]

    def lag(self, link: str, now_s: float) -> tuple[int, float]:
        """How many offsets a link is behind, and for how many seconds."""
        at = self.highs.get(link, self.base)
        since_s = next((time_s for time_s, offset in self._marks if offset > at), now_s)
        return max(self.front - at, 0), max(now_s - since_s, 0.0)


@attrs.define(kw_only=True)
class LinkBook:
    """The counts and alarms of all links. Times are those of one clock, in seconds."""

    silent_after_s: float
    lag_after_s: float
    lag_offsets_max: int
    links: dict[str, LinkCounts]

    @classmethod
    def of(cls, names: Iterable[str], *, silent_after_s: float, lag_after_s: float, lag_offsets_max: int) -> LinkBook:
        """A book with a page for each of these links."""
        return cls(
            silent_after_s=silent_after_s,
            lag_after_s=lag_after_s,
            lag_offsets_max=lag_offsets_max,
            links={name: LinkCounts() for name in dict.fromkeys(names)},
        )

    def begin(self) -> None:
        """The inputs are read from now on: nothing that was not read before was missed by a link."""
        for counts in self.links.values():
            counts.missed_since, counts.missed_since_s = 0, math.inf

    def waited_for(self) -> list[str]:
        """The links of which something may still be hoped for: those that are not silent."""
        return [name for name, counts in self.links.items() if Alarm.SILENT not in counts.alarms]

    def note(self, link: str, *, records: int, first: int, late: int, unidentified: int, now_s: float) -> None:
        """Records came over a link."""
        counts = self.links[link]
        counts.records += records
        counts.first += first
        counts.late += late
        counts.unidentified += unidentified
        counts.repeats += records - first - unidentified
        counts.last_s = now_s
        counts.missed_since, counts.missed_since_s = 0, math.inf
        if first:
            for name, others in self.links.items():
                if name != link:
                    others.missed_since += first
                    others.missed_since_s = min(others.missed_since_s, now_s)

    def look(self, now_s: float, trails: Iterable[Trail] = ()) -> Iterator[tuple[str, Alarm, str | None]]:
        """Bring lags and alarms up to date.

        Yields:
            Each alarm that was raised, as link, alarm and sentence, or cleared, with None for the sentence.
        """
        trails = list(trails)
        names = list(self.links)
        for trail in trails:
            trail.mark(now_s, names)
        for name, counts in self.links.items():
            lags = [trail.lag(name, now_s) for trail in trails]
            counts.lag_offsets = sum(offsets for offsets, _ in lags)
            counts.lag_s = max((seconds for _, seconds in lags), default=0.0)
            silent_s = now_s - counts.missed_since_s
            if trails:
                # What a link lost in the middle, and another brought after it, is nothing that it can bring any more.
                silent_s = min(silent_s, counts.lag_s)
            found = dict(self._found(name, counts, silent_s))
            for alarm in Alarm:
                if alarm in found and alarm not in counts.alarms:
                    yield name, alarm, found[alarm]
                elif alarm in counts.alarms and alarm not in found:
                    yield name, alarm, None
            counts.alarms = found

    def _found(self, name: str, counts: LinkCounts, silent_s: float) -> Iterator[tuple[Alarm, str]]:
        if silent_s >= self.silent_after_s:
            yield (
                Alarm.SILENT,
                f"link {name} has delivered nothing for {silent_s:.0f} s, in which other links brought "
                f"{counts.missed_since} new records",
            )
        elif counts.lag_offsets >= self.lag_offsets_max or counts.lag_s >= self.lag_after_s:
            yield (
                Alarm.LAGGING,
                f"link {name} is {counts.lag_offsets} offsets and {counts.lag_s:.0f} s behind the other links",
            )
