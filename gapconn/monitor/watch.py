"""One pair, watched: both ends are asked, it is decided what that means, and the ingress is held or let go.

What the ingress says of its holds is compared with what is wanted at every check. So an action that failed is tried
again, one that somebody has undone is done again, and one that was done already is not done twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from gapconn.admin.client import AdminClient, Health, NoAnswerError
from gapconn.errors import LinkError
from gapconn.monitor.actions import post_json, run_command
from gapconn.monitor.config import Monitor, NamedPair
from gapconn.monitor.memory import PairMemory
from gapconn.monitor.notify import Notifier
from gapconn.monitor.states import PairEffect, PairMachine, PairState
from gapconn.monitor.verdict import EndReport, failure_of

RETRY_S: Final = 5.0
"""Between tries of a command or a webhook that failed."""
RENEWALS_PER_LEASE: Final = 4
NOT_ASKED: Final = EndReport(answered=False, why="it is not watched")


@attrs.define(kw_only=True)
class WatchCounts:
    """What a watcher did. They only grow."""

    checks: int = 0
    checks_failed: int = 0
    pauses: int = 0
    resumes: int = 0
    actions_failed: int = 0
    gap_reports: int = 0
    gap_positions: int = 0


class Watcher:
    """Watches one pair.

    Attributes:
        machine: What it thinks of the pair.
        egress, ingress: What the last check of each brought.
        failure: Why the ingress must not send, by the last check; None if it may.
        positions: What the egress had delivered when it was last asked; None if it was never known.
        misconfigured: Why nothing can be done for this pair; empty if all is well.
    """

    def __init__(self, pair: NamedPair, settings: Monitor, notifier: Notifier, remembered: PairMemory | None) -> None:
        remembered = remembered or PairMemory()
        self.pair = pair
        self.settings = settings
        self.machine = PairMachine(
            failures=settings.failures,
            recover_after_s=settings.recover_after,
            hold_max_s=settings.hold_max,
            state=PairState.OUT if remembered.out else PairState.UNKNOWN,
            times_out=remembered.times_out,
        )
        self.egress = self.ingress = NOT_ASKED
        self.failure: str | None = None
        self.positions = remembered.positions
        self.misconfigured = ""
        self.counts = WatchCounts()
        self.out_since_s: float | None = None
        self.changed = True
        """What is to be remembered has changed since somebody set this to False."""
        self._owner = f"monitor:{settings.name}"
        self._notifier = notifier
        self._ingress_up_since_s: float | None = None
        self._ingress_failures = 0
        self._acted: bool | None = True if remembered.out else None
        """What a command or webhook was last done for: held or not."""
        self._try_again_s = 0.0
        self._told_trouble = ""

    @property
    def memory(self) -> PairMemory:
        """What a restart must not forget."""
        return PairMemory(out=bool(self.machine.wants_hold), times_out=self.machine.times_out, positions=self.positions)

    @property
    def held(self) -> bool:
        """Whether this monitor holds the ingress, as far as is known."""
        if self.pair.settings.action == "http":
            return self._owner in self.ingress.holds
        return bool(self._acted)

    def good_for_s(self) -> float:
        """For how long the egress has been healthy."""
        return self.machine.good_for_s(trio.current_time())

    async def run(self) -> None:
        """Check and act until cancelled."""
        pair, settings = self.pair, self.settings
        async with (
            AdminClient(pair.egress, timeout_s=settings.deadline) as egress,
            AdminClient(pair.ingress or pair.egress, timeout_s=settings.deadline) as ingress,
            AdminClient(pair.ingress or pair.egress, token=pair.token, timeout_s=settings.action_timeout) as control,
        ):
            while True:
                began_s = trio.current_time()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._ask_egress, egress)
                    if pair.ingress:
                        nursery.start_soon(self._ask_ingress, ingress)
                self._decide()
                await self._act(control)
                # Also after a slow check: an end that hangs must be asked again at once.
                await trio.sleep_until(max(began_s + settings.interval, trio.current_time() + 0.01))

    # -- Asking ----------------------------------------------------------------------------------------------

    async def _ask_egress(self, client: AdminClient) -> None:
        self.egress = await self._asked(client.health)
        if self.egress.answered and self.egress.facts.get("role") == "egress":
            try:
                self.positions = await client.positions()
            except LinkError as error:  # the last ones that were known still count
                self._tell_trouble(f"the positions of the egress are not known: {error}")

    async def _ask_ingress(self, client: AdminClient) -> None:
        self.ingress = await self._asked(client.health)
        now_s = trio.current_time()
        if self.ingress.answered:
            if self._ingress_failures >= self.settings.failures:
                self._notifier.tell("info", "ingress_back", self.pair.name, "the ingress answers again")
                self._notifier.alert("GapconnIngressDown", self.pair.name, None)
            self._ingress_failures = 0
            self._ingress_up_since_s = self._ingress_up_since_s or now_s
            return
        self._ingress_up_since_s = None
        self._ingress_failures += 1
        if self._ingress_failures == self.settings.failures:
            text = f"the ingress does not answer: {self.ingress.why}"
            self._notifier.tell("error", "ingress_failed", self.pair.name, text)
            self._notifier.alert("GapconnIngressDown", self.pair.name, text)

    async def _asked(self, health: Callable[[], Awaitable[Health]]) -> EndReport:
        self.counts.checks += 1
        began_s = trio.current_time()
        try:
            answer = await health()
        except LinkError as error:
            self.counts.checks_failed += 1
            return EndReport(answered=False, why=str(error), took_s=trio.current_time() - began_s)
        return EndReport(
            answered=True, facts=answer.facts, problems=answer.problems, took_s=trio.current_time() - began_s
        )

    # -- Deciding --------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        now_s, pair = trio.current_time(), self.pair.name
        self.misconfigured = self._mistake()
        if self.misconfigured:
            self._tell_trouble(self.misconfigured)
            return
        self.failure = failure_of(
            self.egress,
            ingress_answers_for_s=0.0 if self._ingress_up_since_s is None else now_s - self._ingress_up_since_s,
            sink_stalled_after_s=self.settings.sink_stalled_after,
            interrupted_after_s=self.settings.interrupted_after,
        )
        before = self.machine.state
        if before is PairState.UNKNOWN and self._owner in self.ingress.holds:
            self.machine.found_held()
        effect = self.machine.check(now_s, good=self.failure is None)
        self.changed |= self.machine.state is not before
        if effect is PairEffect.TAKE_OUT:
            self.out_since_s = now_s
            text = f"the egress failed: {self.failure}"
            self._notifier.tell("error", "egress_failed", pair, text, times_out=self.machine.times_out)
        elif effect is PairEffect.LET_WORK:
            self.out_since_s = None
            text = f"the egress has been healthy for {self.machine.good_for_s(now_s):.0f} s"
            self._notifier.tell("info", "egress_back", pair, text)
        elif before is PairState.OUT and self.machine.state is PairState.RECOVERING:
            text = f"the egress is healthy again; if it stays so for {self.machine.hold_s:.0f} s, its ingress may work"
            self._notifier.tell("info", "egress_recovering", pair, text)
        if self.machine.wants_hold is not None:  # a monitor that was restarted raises what its predecessor had raised
            down = f"the egress failed: {self._reason}" if self.machine.wants_hold else None
            self._notifier.alert("GapconnEgressDown", pair, down)

    def _mistake(self) -> str:
        """Why these two cannot be a pair."""
        egress, ingress = self.egress, self.ingress
        for end, role in ((egress, "egress"), (ingress, "ingress")):
            found = end.facts.get("role", role)
            if found != role:
                return f"the {role} of this pair is an {found}: correct the addresses of [pair.{self.pair.name}]"
        if egress.link and ingress.link and egress.link != ingress.link:
            return (
                f"the egress is of link {egress.link!r}, the ingress of link {ingress.link!r}: no pair; correct the "
                f"addresses of [pair.{self.pair.name}]"
            )
        return ""

    # -- Acting ----------------------------------------------------------------------------------------------

    async def _act(self, control: AdminClient) -> None:
        wanted = self.machine.wants_hold
        if self.misconfigured or wanted is None:
            return
        if self.machine.state is PairState.RECOVERING and self.ingress.answered and not self.held:
            return  # nobody has held it while the egress was away (or a person let it go): now it is too late for that
        try:
            if self.pair.settings.action == "http":
                await self._reconcile(control, wanted)
            elif self._acted is not wanted and not (self._acted is None and not wanted):
                await self._do(wanted)
        except LinkError as error:
            self.counts.actions_failed += 1
            self._tell_trouble(f"{'pausing' if wanted else 'resuming'} the ingress failed: {error}")
        else:
            self._told_trouble = ""

    async def _reconcile(self, control: AdminClient, wanted: bool) -> None:
        if not self.ingress.answered:
            if wanted:
                raise NoAnswerError(self.ingress.why)
            return
        renewed_s_ago = self.ingress.holds.get(self._owner)
        if wanted and renewed_s_ago is None:
            await self._pause(control)
        elif wanted and renewed_s_ago is not None and renewed_s_ago > self.settings.lease / RENEWALS_PER_LEASE:
            await control.post("/pause", {"owner": self._owner, "reason": self._reason})
        elif not wanted and self.machine.good_for_s(trio.current_time()) >= self.machine.hold_s:
            if renewed_s_ago is not None:
                await self._resume(control, {"owner": self._owner})
            for owner, ago_s in self.ingress.holds.items():
                if owner.startswith("monitor:") and owner != self._owner and ago_s > self.settings.lease:
                    await self._resume(control, {"owner": owner, "unrenewed_s": self.settings.lease})

    async def _pause(self, control: AdminClient) -> None:
        body: dict[str, Any] = {"owner": self._owner, "reason": self._reason}
        if self.positions is not None:
            body["positions"] = self.positions
        answer = await control.post("/pause", body)
        self.counts.pauses += 1
        known = (
            "" if self.positions is not None else "; what the egress has delivered is not known, so it cannot go back"
        )
        self._notifier.tell(
            "warning",
            "ingress_paused",
            self.pair.name,
            f"the ingress is told to pause{known}",
            holds=answer.get("holds"),
        )

    @property
    def _reason(self) -> str:
        return self.failure or "its egress is healthy again, but not for long enough"

    async def _resume(self, control: AdminClient, body: dict[str, Any]) -> None:
        answer = await control.post("/resume", body)
        for owner in answer.get("released", ()):
            self.counts.resumes += 1
            others = [hold["owner"] for hold in answer.get("holds", ())]
            text = f"the hold of {owner} is gone" + (
                f", still held by {', '.join(others)}" if others else ": it works again"
            )
            self._notifier.tell("info", "ingress_resumed", self.pair.name, text)

    async def _do(self, hold: bool) -> None:
        """Run the command, or call the webhook, of this pair."""
        now_s, settings = trio.current_time(), self.pair.settings
        if now_s < self._try_again_s:
            return
        self._try_again_s = now_s + RETRY_S
        if settings.action == "command":
            command = settings.pause_command if hold else settings.resume_command
            await run_command(command, self.settings.action_timeout)
            what = f"ran {command[0]}"
        else:
            content = {
                "action": "pause" if hold else "resume",
                "pair": self.pair.name,
                "reason": self._reason,
                "positions": self.positions,
            }
            await post_json(settings.action_url, content, self.settings.action_timeout)
            what = "called the webhook"
        self._acted, self._try_again_s, self.changed = hold, 0.0, True
        if hold:
            self.counts.pauses += 1
            self._notifier.tell("warning", "ingress_paused", self.pair.name, f"{what} to take the ingress out")
        else:
            self.counts.resumes += 1
            self._notifier.tell("info", "ingress_resumed", self.pair.name, f"{what} to let the ingress work")

    def _tell_trouble(self, text: str) -> None:
        """Say it once, until it is another one or is over."""
        if text != self._told_trouble:
            self._told_trouble = text
            self._notifier.tell("error", "monitor_in_trouble", self.pair.name, text)
