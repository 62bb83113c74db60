"""A row of the table: what is measured in rounds, and what must be reached."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from bench.measure import ROLES, Figure, peaks_bytes


@attrs.frozen(kw_only=True)
class Effort:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a trial."""
    total_bytes: int
    """Carried through a gap that loses."""


@attrs.frozen(kw_only=True)
class Round:
    """One round: the plain program, and directly after it the pair."""

    pair: Figure
    plain: Figure | None = None
    scores: dict[str, float]
    """What the floors of the row are compared with, by name."""


@attrs.frozen(kw_only=True)
class Floor:
    """What a score must be."""

    limit: float
    unit: str = ""
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"

    def reached(self, score: float) -> bool:
        """Whether a score is good enough."""
        return score <= self.limit if self.at_most else score >= self.limit


@attrs.frozen(kw_only=True)
class Row:
    """What is measured, and how."""

    name: str
    what: str
    floors: dict[str, Floor]
    """By the name of the score."""
    rounds: Callable[[Effort], Iterator[Round]]
    """Measures a round whenever it is asked for the next one; what one round learned, the next one may use."""
    once: bool = False
    """Takes long, and is the same every time."""

    def measure(self, effort: Effort) -> Result:
        """All rounds."""
        peaks_bytes.clear()
        rounds = list(itertools.islice(self.rounds(effort), 1 if self.once else effort.rounds))
        return Result(
            row=self, rounds=rounds, peak_bytes={role: peaks_bytes[role] for role in ROLES if role in peaks_bytes}
        )


@attrs.frozen(kw_only=True)
class Result:
    """What came of a row."""

    row: Row
    rounds: list[Round]
    peak_bytes: dict[str, int] = attrs.field(factory=dict)
    """Most resident memory of all rounds, by role."""
    failure: str = ""
    """Why it could not be measured."""

    def score(self, name: str) -> float:
        """The median of the rounds."""
        return statistics.median(each.scores[name] for each in self.rounds)

    def range(self, name: str) -> tuple[float, float]:
        """The least and the highest of the rounds."""
        scores = [each.scores[name] for each in self.rounds]
        return min(scores), max(scores)

    @property
    def lost(self) -> int:
        """In the worst round."""
        return max((each.pair.lost for each in self.rounds), default=0)

    @property
    def cpu_s_per_gb(self) -> dict[str, float]:
        """The median of the rounds, by role."""
        measured = [each.pair.cpu_s_per_gb for each in self.rounds if each.pair.cpu_s_per_gb]
        return {role: statistics.median(each[role] for each in measured) for role in ROLES if measured}

    def facts(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "name": self.row.name,
            "what": self.row.what,
            "failure": self.failure,
            "lost": self.lost,
            "peak_bytes": self.peak_bytes,
            "cpu_s_per_gb": self.cpu_s_per_gb,
            "scores": {
                name: {
                    "floor": str(floor),
                    "median": self.score(name),
                    "range": self.range(name),
                    "reached": floor.reached(self.score(name)),
                }
                for name, floor in self.row.floors.items()
                if self.rounds
            },
            "rounds": [attrs.asdict(each) for each in self.rounds],
        }
