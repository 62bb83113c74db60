"""What a bench shows: a line for each step, and at the end the rate that held, in text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec

from gapconn.bench.egress import StepResult
from gapconn.bench.ingress import Step
from gapconn.bench.plan import Plan
from gapconn.config import Link
from gapconn.units import BitsPerSecond, format_bytes, format_percent, format_rate, format_seconds

SHARE_RECOMMENDED = 0.8
"""Of the highest rate that held: what else the hosts do, and longer bursts, need the rest."""


def short_rate(rate_bps: float) -> str:
    """Three digits of a rate."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate_bps >= factor:
            return f"{rate_bps / factor:.3g} {unit}"
    return f"{rate_bps:.0f} bit/s"


def about_link(link: Link) -> str:
    """The link in a few words."""
    repair = f"repair {format_percent(link.fec.repair)}" if link.fec.repair else "no repair"
    return f"link {link.name!r} to {link.address}, MTU {link.mtu_bytes}, {repair}"


# The sending end


def about_plan(plan: Plan) -> str:
    """The plan in a sentence."""
    rates = ", ".join(map(format_rate, plan.rates_bps))
    return (
        f"{len(plan.rates_bps)} steps of {format_seconds(plan.step_s)}: {rates}; "
        f"records of {format_bytes(plan.size_bytes)}"
    )


SENT_HEADING = f"{'step':>7}  {'rate':>11}  {'sent':>11}  {'payload':>11}  {'datagrams':>11}  {'CPU':>5}"


def sent_line(step: Step) -> str:
    """What was sent in a step."""
    sent = step.sent
    assert sent is not None
    line = (
        f"{_step_words(step.number, len(step.plan.rates_bps))}  {format_rate(step.rate_bps):>11}  "
        f"{short_rate(sent.wire_bps):>11}  {short_rate(8 * sent.payload_bytes / sent.took_s):>11}  "
        f"{sent.datagrams:>11,}  {sent.cpu_s / sent.took_s:>5.0%}"
    )
    if step.is_last and step.number + 1 < len(step.plan.rates_bps):
        line += "  this host sends no faster: higher rates are left out"
    return line


# The receiving end


def about_egress(ingress_command: str, address: str, granted_bytes: int, link: Link) -> str:
    """Where an egress listens, and what it waits for."""
    text = f"listening on {address}, receive buffer {format_bytes(granted_bytes)}"
    if granted_bytes < link.receive_buffer_bytes:
        text += (
            f" (the kernel grants no more; the link asks for {format_bytes(link.receive_buffer_bytes)}: "
            f"sysctl -w net.core.rmem_max={link.receive_buffer_bytes})"
        )
    return f"{text}\nwaiting for: {ingress_command}"


ARRIVED_HEADING = (
    f"{'step':>7}  {'rate':>11}  {'payload':>11}  {'datagrams':>11}  {'lost':>9}  {'rebuilt':>9}  "
    f"{'messages lost':>13}  {'CPU in, out':>12}  verdict"
)


def arrived_line(result: StepResult) -> str:
    """What became of a step."""
    arrived, sent = result.arrived, result.sent
    cpu = f"{sent.cpu_s / sent.took_s:.0%}, {arrived.cpu_s / sent.took_s:.0%}" if sent else ""
    return (
        f"{_step_words(result.step, result.steps)}  {format_rate(result.rate_bps):>11}  "
        f"{short_rate(result.payload_bps):>11}  {arrived.datagrams:>11,}  {arrived.datagrams_missed:>9,}  "
        f"{arrived.rebuilt:>9,}  "
        f"{arrived.messages_lost:>13,}  {cpu:>12}  "
        f"{verdict(result)}"
    )


def verdict(result: StepResult) -> str:
    """What a step showed, in a few words."""
    arrived = result.arrived
    where = f", {arrived.kernel_drops:,} times at this host's receive buffer" if arrived.kernel_drops else ""
    if result.sent is None:
        return "broke off"
    if result.held:
        return "held"
    if result.whole:
        return f"whole, but only by repair{where}"
    if arrived.damaged:
        return f"LOST{where}; {arrived.damaged:,} records DAMAGED: please report this bug"
    return f"LOST{where}"


@attrs.frozen(kw_only=True)
class Conclusion:
    """What the steps together say."""

    highest: StepResult | None
    """The step with the highest rate that held."""
    recommended_bps: BitsPerSecond | None
    """For `link.rate`."""
    advice: list[str]
    """Sentences for the operator."""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "highest_rate_bps": self.highest and self.highest.rate_bps,
            "highest_payload_bps": self.highest and round(self.highest.payload_bps),
            "recommended_rate_bps": self.recommended_bps,
            "advice": self.advice,
        }


def conclude(results: list[StepResult], link: Link) -> Conclusion:
    """The highest rate that held, and what to do."""
    held = [result for result in results if result.held]
    failed = [result for result in results if result.sent is not None and not result.held]
    if not held:
        advice = list(_advice_if_none(results))
        return Conclusion(highest=None, recommended_bps=None, advice=advice)
    highest = max(held, key=_reached_bps)
    # A rate above one at which something was lost held by luck.
    lowest_failed = min(failed, key=_reached_bps, default=None)
    if lowest_failed is not None and _reached_bps(lowest_failed) < _reached_bps(highest):
        below = [result for result in held if _reached_bps(result) < _reached_bps(lowest_failed)]
        if not below:
            return Conclusion(highest=None, recommended_bps=None, advice=list(_advice_if_none(failed)))
        highest = max(below, key=_reached_bps)
    reached_bps = _reached_bps(highest)
    recommended = _two_digits(SHARE_RECOMMENDED * reached_bps)
    return Conclusion(
        highest=highest,
        recommended_bps=recommended,
        advice=list(_advice(highest, lowest_failed, recommended, link)),
    )


def _advice(highest: StepResult, failed: StepResult | None, recommended: BitsPerSecond, link: Link) -> Iterator[str]:
    reached_bps = _reached_bps(highest)
    payload = short_rate(highest.payload_bps)
    yield f"The highest rate that held: {short_rate(reached_bps)} on the wire, {payload} of payload."
    yield f'Set rate = "{format_rate(recommended)}" in [link], at both ends: {SHARE_RECOMMENDED:.0%} of it.'
    if failed is not None:
        place = "this host's receive buffer overflowed" if failed.arrived.kernel_drops else "the gap lost datagrams"
        yield f"At {format_rate(failed.rate_bps)}, {place}."
    elif highest.rate_bps > 1.1 * reached_bps:
        yield "The ingress cannot send faster."
    else:
        yield "Nothing was lost at any rate that was tried; higher ones can be asked for by --rates at the ingress."
    if 0 < link.rate_bps < reached_bps * 0.5:
        yield f"The link is configured for {format_rate(link.rate_bps)}."


def _advice_if_none(results: list[StepResult]) -> Iterator[str]:
    if not results:
        yield "Nothing was heard of an ingress that benches this link."
        return
    complete = [result for result in results if result.sent is not None]
    if not complete:
        yield "No step came to its end."
        return
    lowest = min(complete, key=lambda result: result.rate_bps)
    yield f"No rate held, the lowest was {format_rate(lowest.rate_bps)}; try lower ones by --rates at the ingress."
    if lowest.arrived.kernel_drops:
        yield "This host dropped datagrams: a larger receive buffer, or a CPU of its own for the egress, helps."
    elif lowest.arrived.datagrams_missed:
        yield "What is missing was lost before this host: in the gap, or at its devices."


def _reached_bps(result: StepResult) -> float:
    """The rate that a step came to: an ingress at its limit sends less than it should."""
    return min(result.rate_bps, result.sent.wire_bps) if result.sent else result.rate_bps


def _two_digits(rate_bps: float) -> BitsPerSecond:
    """Rounded down."""
    step = 10 ** max(0, len(str(int(rate_bps))) - 2)
    return BitsPerSecond(int(rate_bps) // step * step)


def step_facts(result: StepResult) -> dict[str, Any]:
    """A step as JSON."""
    sent: dict[str, Any] | None = msgspec.to_builtins(result.sent)
    return {
        "step": result.step + 1,
        "steps": result.steps,
        "rate_bps": result.rate_bps,
        "held": result.held,
        "whole": result.whole,
        "payload_bps": round(result.payload_bps),
        "sent": sent,
        "arrived": attrs.asdict(result.arrived),
    }


def as_json(facts: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(facts)


def _step_words(step: int, steps: int) -> str:
    return f"{f'{step + 1}/{steps}':>7}"
