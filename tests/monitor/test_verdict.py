"""What an answer of an egress means for its ingress."""

from __future__ import annotations

from typing import Any

import pytest

from gapconn.monitor.verdict import EndReport, failure_of


def judged(
    ingress_answers_for_s: float = 100.0, *, stalled: float = 30, interrupted: float = 5, **facts: Any
) -> str | None:
    return failure_of(
        EndReport(answered=True, facts=facts),
        ingress_answers_for_s=ingress_answers_for_s,
        sink_stalled_after_s=stalled,
        interrupted_after_s=interrupted,
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, None),
        ({"alarms": ["conflict", "unverified"]}, None),
        ({"alarms": ["sink_hangs"]}, "its sink hangs"),
        ({"alarms": ["conflict", "receiver_hangs"]}, "its receiver hangs"),
        ({"spool_stuck": True}, "its spool takes nothing more"),
        ({"sink_stalled_s": 29.9}, None),
        ({"sink_stalled_s": 30.0}, "its target has taken nothing for 30 s"),
        ({"alarms": ["link_interrupted"]}, "the gap between them is broken"),
    ],
)
def test_an_answer(facts: dict[str, Any], words: str | None) -> None:
    failure = judged(**facts)
    assert failure is None if words is None else words in (failure or "")


def test_no_answer_is_a_failure() -> None:
    failure = failure_of(
        EndReport(answered=False, why="refused"),
        ingress_answers_for_s=0, sink_stalled_after_s=0, interrupted_after_s=0,
    )  # fmt: skip
    assert failure == "it does not answer: refused"


def test_an_egress_that_only_spools_can_be_left_alone() -> None:
    assert judged(stalled=0, sink_stalled_s=1e6) is None


def test_an_interrupted_link_is_no_failure_of_the_egress_while_its_ingress_is_away_or_new() -> None:
    assert judged(0.0, alarms=["link_interrupted"]) is None
    assert judged(4.9, alarms=["link_interrupted"]) is None
    assert judged(5.0, alarms=["link_interrupted"]) is not None
    assert judged(interrupted=0, alarms=["link_interrupted"]) is None
