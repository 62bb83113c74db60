"""Which step is the last one."""

from __future__ import annotations

import pytest

from gapconn.bench.ingress import Step
from gapconn.bench.plan import Plan, Sent
from gapconn.units import BitsPerSecond, Bytes

PLAN = Plan(rates_bps=[BitsPerSecond(rate) for rate in (1000, 2000, 4000, 8000)], step_s=1.0, size_bytes=Bytes(1024))


@pytest.mark.parametrize(
    ("number", "before_bps", "reached_bps", "is_last"),
    [
        (3, 4000, 8000, True),  # there is no further one
        (2, 2000, 4000, False),
        (2, 2000, 3000, False),  # less than asked for, but more than before
        (2, 2000, 2100, True),  # no more than before: the ingress is at its limit
        (0, 0, 100, False),  # nothing to compare with
        (2, 3900, 3900, False),  # as much as asked for, nearly
    ],
)
def test_the_last_step(number: int, before_bps: float, reached_bps: int, is_last: bool) -> None:
    step = Step(plan=PLAN, number=number, before_bps=before_bps)
    step.sent = Sent(records=1, payload_bytes=1, datagrams=1, wire_bytes=reached_bps // 8, took_s=1.0, cpu_s=0.1)
    assert step.is_last is is_last
    said = step.announcement()
    assert (said.step, said.steps, said.rate_bps, said.is_last) == (number, 4, PLAN.rates_bps[number], is_last)


def test_before_its_data_no_step_is_said_to_be_the_last() -> None:
    assert not Step(plan=PLAN, number=3).announcement().is_last
