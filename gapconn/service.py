"""An end of a pair as a process: its stored state, its socket, its admin endpoint, and the signals that end it."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import attrs
import structlog
import trio
from structlog.typing import FilteringBoundLogger

from gapconn.admin.asking_view import AskingView
from gapconn.admin.control import IngressControl
from gapconn.admin.egress_view import EgressView
from gapconn.admin.ingress_view import IngressView
from gapconn.admin.server import serve_admin
from gapconn.admin.token import load_token
from gapconn.admin.view import AdminView
from gapconn.config import Pair
from gapconn.egress import Egress, OpenedSink
from gapconn.errors import ConfigError, LinkError
from gapconn.fec.choice import choose_codec
from gapconn.ingress import Ingress, burst_datagrams_at
from gapconn.key_watch import KeyWatch
from gapconn.link.alarm import Alarm
from gapconn.link.host import HostWatch, source_address
from gapconn.link.udp import UdpReceiver, UdpSender, ip_header_bytes, resolve
from gapconn.pauses import Pauses
from gapconn.progress import continued, joined
from gapconn.protocol.progress import Progress
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import LossCause
from gapconn.protocol.security import Keys
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.repeats import Repeats
from gapconn.resend import Resends
from gapconn.sinks import Reached
from gapconn.store.journal import Changes
from gapconn.store.repeat_buffer import RepeatBuffer
from gapconn.store.resends import ResendFile
from gapconn.store.spool import Spool
from gapconn.store.state import EgressState, IngressState
from gapconn.units import format_bytes, format_percent, format_rate, format_seconds

QUICK_ANSWER_S = 1.0
"""A target that answers within it is not worth a page that says that it is asked."""


class End(Protocol):
    """What an ingress and an egress have in common."""

    pair: Pair
    log: FilteringBoundLogger
    stopping: bool
    key_watch: KeyWatch | None
    host: HostWatch | None

    def use_keys(self, keys: Keys) -> None:
        """Seal or open with these keys from now on."""

    def datagrams_missing(self) -> int:
        """Datagrams that are known to be missing and never reached this host; 0 where nobody can know."""

    async def run(self) -> None:
        """All tasks, until the work is over."""

    def stop(self) -> None:
        """Ask for an orderly end."""

    def unfinished(self) -> str | None:
        """What is not done, when the grace time was spent; None if nothing is lost by that."""


Companion: TypeAlias = Callable[..., Awaitable[object]]
"""A task beside an end, which it gets as its argument. The end starts when it calls `task_status.started()`, and when
the end is over, it is cancelled."""


async def serve_ingress(pair: Pair, *, only_resends: bool = False, companion: Companion | None = None) -> None:
    """Run the ingress of `pair` until its source ends or a signal asks it to stop.

    Args:
        pair: Must have a source.
        only_resends: Take nothing new from the source: send what was asked to be sent again, and end.
        companion: A task that runs beside it.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """
    if pair.source is None:
        raise ConfigError(["[source]: the section is missing, and the ingress needs it"])
    log = structlog.get_logger().bind(link=pair.link.name)
    if pair.admin is not None and pair.admin.token_file:
        await trio.to_thread.run_sync(load_token, Path(pair.admin.token_file))  # fails now, not at the first request
    key_watch = await _watch_keys(pair)
    family, target = await resolve(pair.link.address, "link.address")
    state = await trio.to_thread.run_sync(
        IngressState.open, Path(pair.link.state_directory), pair.link.name, pair.link.id
    )
    requests: ResendFile | None = None
    buffer: RepeatBuffer | None = None
    try:
        directory = Path(pair.link.state_directory)
        requests = await trio.to_thread.run_sync(ResendFile.open, directory, pair.link.name, pair.link.id)
        resends = Resends(requests, pair.source, link=pair.link, log=log.bind(task="resend"))
        section = resends.as_source() if only_resends else pair.source
        buffer = await trio.to_thread.run_sync(_repeat_buffer, pair)
        # Whoever only sends again takes nothing from the source. A monitor's hold has its time to be renewed.
        holds = [] if only_resends else await trio.to_thread.run_sync(state.holds)
        pauses = Pauses(attrs.evolve(hold, renewed_s=time.time()) for hold in holds)
        # The clock only matters where there is no stored state, or a stored state from a clock that is behind.
        epoch, previous_epoch = await trio.to_thread.run_sync(state.begin_session, time.time_ns() // 1000)
        header_bytes = ip_header_bytes(target[0])
        core = LinkSender(
            SenderSettings(
                link_id=pair.link.id,
                epoch=epoch,
                previous_epoch=previous_epoch,
                heartbeat_interval_s=pair.link.heartbeat_interval_s,
                interruption_timeout_s=pair.link.interruption_timeout_s,
                mtu_bytes=pair.link.mtu_bytes,
                ip_header_bytes=header_bytes,
                message_bytes_max=pair.link.message_bytes_max,
                repair_share=pair.link.fec.repair_share,
                burst_datagrams_max=burst_datagrams_at(pair.link),
                keys=key_watch.keys if key_watch else None,
            ),
            choose_codec(log),
        )
        udp = UdpSender(family, target, log=log.bind(task="sender"))
        alarm = Alarm()
        try:
            host = await _watch_host(source_address(family, target), sending=True)
            log.info(
                "ingress_started",
                to=str(pair.link.address),
                epoch=epoch,
                link_id=pair.link.id,
                rate=format_rate(pair.link.rate_bps),
                mtu_bytes=pair.link.mtu_bytes,
                segmentation_offload=udp.gso,
                repair=format_percent(pair.link.fec.repair),
                fec_backend=core.codec.name,
                security=pair.link.security.mode,
                repeat=[format_seconds(delay_s) for delay_s in pair.link.repeat_s] or None,
                repeat_buffer=str(buffer.path) if buffer else None,
                keys=key_watch.overview() if key_watch else None,
                key_in_use=core.key_id or None,
                announcing_s=0 if previous_epoch else pair.link.interruption_timeout_s,
            )
            ingress = Ingress(
                pair,
                section,
                core,
                udp,
                header_bytes=header_bytes,
                key_watch=key_watch,
                resends=resends,
                repeats=Repeats(buffer, pair.link, epoch=epoch, log=log.bind(task="repeats")) if buffer else None,
                host=host,
                pauses=pauses,
                sleep_until=alarm.sleep_until,
            )
            token_file = pair.admin.token_file if pair.admin else ""
            control = IngressControl(ingress, state, token_file, requests)
            await _run_until_stopped(ingress, IngressView(ingress, control.pages()), companion)
        finally:
            alarm.close()
            udp.close()
    finally:
        if requests is not None:
            requests.close()
        if buffer is not None:
            buffer.close()
        state.close()


def _repeat_buffer(pair: Pair) -> RepeatBuffer | None:
    section = pair.repeat_buffer
    if section is None:
        return None
    return RepeatBuffer(
        Path(section.directory or pair.link.state_directory),
        link=pair.link.name,
        link_id=pair.link.id,
        max_bytes=section.max_bytes,
        keep_free_bytes=section.keep_free_bytes,
    )


async def serve_egress(pair: Pair, *, companion: Companion | None = None) -> None:
    """Run the egress of `pair` until a signal asks it to stop.

    Args:
        pair: Must have a sink.
        companion: A task that runs beside it.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """
    if pair.sink is None:
        raise ConfigError(["[sink]: the section is missing, and the egress needs it"])
    log = structlog.get_logger().bind(link=pair.link.name)
    key_watch = await _watch_keys(pair)
    family, listen = await resolve(pair.link.listen, "link.bind" if pair.link.bind else "link.address")
    state = await trio.to_thread.run_sync(
        EgressState.open, Path(pair.link.state_directory), pair.link.name, pair.link.id
    )
    try:
        spool, resume = await trio.to_thread.run_sync(resumed, pair, state)
        try:
            udp = UdpReceiver(
                family, listen, log=log.bind(task="receiver"), buffer_bytes=pair.link.receive_buffer_bytes
            )
        except BaseException:
            if spool is not None:
                spool.close()
            raise
        try:
            # The socket is open: what comes while the target is asked waits in the kernel's buffer.
            sink = OpenedSink.of(pair, pair.sink)
            if not await _ask_target(sink, pair, log):
                return
            if sink.reached is not None:
                resume = await trio.to_thread.run_sync(go_on_from_target, sink.reached, resume, spool, state)
            core = LinkReceiver(
                ReceiverSettings(
                    link_id=pair.link.id,
                    interruption_timeout_s=pair.link.interruption_timeout_s,
                    hold_s=pair.link.hold_s,
                    available=pair.link.order == "available",
                    reassembly_bytes_max=pair.link.reassembly_bytes_max,
                    message_bytes_max=pair.link.message_bytes_max,
                    keys=key_watch.keys if key_watch else None,
                ),
                now_s=trio.current_time(),
                resume=resume,
                codec=choose_codec(log),
            )
            log.info(
                "egress_started",
                listening=str(udp.address),
                link_id=pair.link.id,
                receive_buffer=format_bytes(udp.buffer_bytes),
                receive_offload=udp.gro,
                fec_backend=core.codec.name,
                security=pair.link.security.mode,
                keys=key_watch.overview() if key_watch else None,
                resumes_epoch=resume.epoch if resume else None,
                spool=str(spool.path) if spool is not None else None,
            )
            host = await _watch_host(udp.address.host, sending=False)
            egress = Egress(
                pair, pair.sink, core, udp, state, resume=resume, key_watch=key_watch, spool=spool, sink=sink, host=host
            )
            await _run_until_stopped(egress, EgressView(egress), companion)
        finally:
            udp.close()
            if spool is not None:
                spool.close()
    finally:
        state.close()


async def _watch_host(address: str, *, sending: bool) -> HostWatch:
    return await trio.to_thread.run_sync(lambda: HostWatch(address, sending=sending))


async def _watch_keys(pair: Pair) -> KeyWatch | None:
    security = pair.link.security
    if not security.sealed:
        return None
    log = structlog.get_logger().bind(link=pair.link.name, task="keys")
    return await trio.to_thread.run_sync(lambda: KeyWatch(Path(security.key_file), log=log))


def resumed(pair: Pair, state: EgressState) -> tuple[Spool | None, Progress | None]:
    """Open the spool; where the egress goes on: behind what it has stored, and behind what is in the spool."""
    resume = state.load()
    if pair.spool is None or not pair.spool.max_bytes:
        return None, _with_losses(resume, state, None)
    spool = Spool(
        Path(pair.spool.directory or pair.link.state_directory),
        link=pair.link.name,
        link_id=pair.link.id,
        max_bytes=pair.spool.max_bytes,
        keep_free_bytes=pair.spool.keep_free_bytes,
    )
    try:
        settled = (resume.epoch, resume.next_message) if resume is not None else (0, 0)
        _note_cut(spool, resume, state)
        beyond = continued(resume, spool.described_since(*settled))
        if beyond is not None and beyond is not resume:
            state.save(beyond)  # what is delivered from the spool is forgotten there
        beyond = _with_losses(beyond, state, spool)
    except BaseException:
        spool.close()
        raise
    return spool, beyond


def _note_cut(spool: Spool, resume: Progress | None, state: EgressState) -> None:
    """What was cut off at the end of the spool as unfinished, and had been finished: it counted as delivered."""
    settled = (resume.epoch, resume.next_message) if resume is not None else (0, 0)
    ahead = {(resume.epoch, each.number) for each in resume.ahead} if resume is not None else set()
    for message in spool.cut:
        place = (message.epoch, message.number)
        if not message.late and (place < settled or place in ahead):
            state.journal.refused(message, LossCause.DAMAGED, time.time_ns() // 1_000_000)
    state.save(None, Changes.of(state.journal))


def _with_losses(resume: Progress | None, state: EgressState, spool: Spool | None) -> Progress | None:
    """The progress with what the journal has as lost: it is taken when it is repeated (GC-DLV-34)."""
    if resume is None:
        return None
    for message in spool.described_mending() if spool is not None and state.journal.open_entries else ():
        state.journal.comes(message)  # another one that arrives before it was read is not to bring the same
    lost = state.journal.messages_lost_in(resume.epoch)
    ahead = (part for each in resume.ahead for part in lost.within(each.number, each.number))
    return attrs.evolve(
        resume,
        lost=(*lost.within(0, resume.next_message - 1), *ahead),
        joined_at=state.journal.joined_at(resume.epoch),
    )


async def _ask_target(sink: OpenedSink, pair: Pair, log: FilteringBoundLogger) -> bool:
    """Wait until the sink knows how far its target has come; False if a signal came before."""
    if not sink.can_tell:
        return True
    answered = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                number = await anext(signals)
                log.info("stopping", signal=signal.Signals(number).name, grace_s=0)
                nursery.cancel_scope.cancel()

            async def show() -> None:
                # Nobody would find a port that changes when the egress begins.
                if pair.admin is not None and pair.admin.listen.port != 0:
                    await trio.sleep(QUICK_ANSWER_S)
                    await serve_admin(pair.admin.listen, AskingView(pair.link, sink.context))

            nursery.start_soon(stop)
            nursery.start_soon(show)
            await sink.resume()
            answered = True
            nursery.cancel_scope.cancel()
    return answered


def go_on_from_target(
    reached: Reached, resume: Progress | None, spool: Spool | None, state: EgressState
) -> Progress | None:
    """Take in what the target says that it has (GC-ONCE-3, GC-ONCE-4); where the egress goes on."""
    now_ms = time.time_ns() // 1_000_000
    for place, ranges in reached.repaired.items():
        state.journal.found(place, ranges, now_ms)
    for epoch, number in reached.late:
        state.journal.came_late(epoch, number, now_ms)
    behind = (reached.progress.epoch, reached.progress.next_message)
    for message in spool.cut if spool is not None else ():
        if not message.late and (message.epoch, message.number) < behind:
            state.journal.came_late(message.epoch, message.number, now_ms)
            for run in message.runs:
                state.journal.found((run.stream, run.partition), [(run.first, run.last)], now_ms)
    state.journal.release_claims()  # some were of what the target has: they are made anew, below
    progress = joined(resume, reached.progress)
    state.save(progress, Changes.of(state.journal))
    return _with_losses(progress, state, spool)


async def _run_until_stopped(end: End, view: AdminView, companion: Companion | None) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, end, signals, nursery, name=f"{view.role}.signals")
            if end.pair.admin is not None:
                bound = await nursery.start(serve_admin, end.pair.admin.listen, view)
                end.log.info("admin_listening", address=str(bound))
            if end.key_watch is not None:
                nursery.start_soon(end.key_watch.run, end.use_keys, name=f"{view.role}.keys")
            if end.host is not None:
                nursery.start_soon(end.host.run, end.datagrams_missing, name=f"{view.role}.host")
            if companion is not None:
                await nursery.start(companion, end)
            await end.run()
            nursery.cancel_scope.cancel()


async def _stop_on_signal(end: End, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
    # Every signal is taken, also those that say it again: Trio gives back what is left at the end, and that would kill
    # a process that is just ending well.
    async for number in signals:
        end.log.info("stopping", signal=signal.Signals(number).name, grace_s=end.pair.link.shutdown_grace_s)
        if not end.stopping:
            end.stop()
            nursery.start_soon(_end_grace, end, nursery, name="grace")


async def _end_grace(end: End, nursery: trio.Nursery) -> None:
    grace_s = end.pair.link.shutdown_grace_s
    await trio.sleep(grace_s)
    unfinished = end.unfinished()
    if unfinished is not None:
        raise LinkError(f"link.shutdown_grace ({grace_s:g} s) is over: {unfinished}")
    nursery.cancel_scope.cancel()
