"""Seeded bugs of the core: each is one thing that somebody might get wrong, put in from outside.

A search that finds nothing may be a search that cannot find anything. Each of these must be found
(`test_mutants.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from gapconn.errors import LocalProtocolError, RemoteProtocolError
from gapconn.protocol import (
    envelope,
    fec,
    fragmenter,
    positions,
    protection,
    reassembler,
    security,
    sender,
    sequence,
    states,
)
from gapconn.protocol.accounts import SessionAccounts
from gapconn.protocol.buffers import Workspace
from gapconn.protocol.envelope import Message, Run
from gapconn.protocol.events import ConflictDetected
from gapconn.protocol.follower import Follower
from gapconn.protocol.fragmenter import Cut
from gapconn.protocol.positions import DeliveredPositions, SentPositions, Standing, StreamPartition
from gapconn.protocol.reassembler import Reassembler
from gapconn.protocol.receiver import LinkReceiver
from gapconn.protocol.registry import DatagramType, DropReason, LossCause, Phase
from gapconn.protocol.security import Keys, Opener, Sealer
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.sequence import SequenceWindow
from gapconn.protocol.states import (
    ReceiverEffect,
    ReceiverInput,
    ReceiverState,
    SenderEffect,
    SenderInput,
    SenderState,
)
from gapconn.protocol.wire import Announcement, Burst, Header
from tests.protocol.machine.world import MESSAGES_HELD_MAX, POSITIONS_TRACKED_MAX

Patch: TypeAlias = pytest.MonkeyPatch
Mutant: TypeAlias = Callable[[Patch], None]

# -- model.md -------------------------------------------------------------------------------------------------


def a_message_without_its_last_symbol_is_complete(patch: Patch) -> None:
    def complete(self: Any) -> bool:
        if self._patchwork is not None:
            return bool(self._patchwork.complete)
        return bool(self._in_front >= max(1, len(self.symbols) - 1))

    patch.setattr(reassembler._Partial, "complete", property(complete))


def messages_are_told_in_reverse(patch: Patch) -> None:
    collect = LinkReceiver._collect_settled

    def reversed_collect(self: LinkReceiver) -> None:
        self._reassembler.settled.reverse()
        collect(self)

    patch.setattr(LinkReceiver, "_collect_settled", reversed_collect)


def a_range_of_lost_messages_is_one_too_short(patch: Patch) -> None:
    skip_to = Reassembler._skip_to

    def short(self: Reassembler, number: int, cause: LossCause) -> None:
        before = self.next_message
        skip_to(self, number, cause)
        if number > before + 1:
            last = self.settled[-1]
            self.settled[-1] = attrs.evolve(last, last=last.last - 1)

    patch.setattr(Reassembler, "_skip_to", short)


def symbols_that_are_not_needed_are_not_counted(patch: Patch) -> None:
    drop = LinkReceiver._drop

    def silent(self: LinkReceiver, reason: DropReason, count: int = 1) -> None:
        if reason is not DropReason.NOT_NEEDED:
            drop(self, reason, count)

    patch.setattr(LinkReceiver, "_drop", silent)


class EgressEndedError(Exception):
    """What the mutant below ends the egress with."""


def an_unknown_phase_ends_the_egress(patch: Patch) -> None:
    well_formed = Announcement.well_formed

    def strict(self: Announcement, header: Header) -> bool:
        if self.phase not in set(Phase):
            raise EgressEndedError
        return well_formed(self, header)

    patch.setattr(Announcement, "well_formed", strict)


# -- wire.md --------------------------------------------------------------------------------------------------


def the_check_of_datagrams_is_skipped(patch: Patch) -> None:
    receive = LinkReceiver.receive

    def trusting(self: LinkReceiver, burst: Burst, now_s: float) -> None:
        if burst.datagram_bytes >= 56:
            rows = burst.slab.layout(burst.datagram_bytes, burst.count, burst.offset)
            rows.checks[: burst.count] = [xxh3_64_intdigest(covered) for covered in rows.covered[: burst.count]]
        receive(self, burst, now_s)

    patch.setattr(LinkReceiver, "receive", trusting)


def every_damaged_datagram_is_bad_check(patch: Patch) -> None:
    def simple(matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.full(len(matrix), DropReason.BAD_CHECK, np.uint8)

    patch.setattr(protection, "_reasons_of_damaged", simple)


def unknown_flags_are_ignored(patch: Patch) -> None:
    unpack = Header.unpack

    def masked(buffer: memoryview | bytes, offset: int = 0) -> Header:
        header = unpack(buffer, offset)
        return attrs.evolve(header, flags=header.flags & 1)

    patch.setattr(Header, "unpack", masked)


def announcements_have_a_sequence_of_their_own(patch: Patch) -> None:
    control = LinkSender._control

    def apart(self: LinkSender, kind: DatagramType, copies: int = 1) -> list[Burst]:
        before = self._sequence
        bursts = control(self, kind, copies)
        self._sequence = max(before, 3)
        return bursts

    patch.setattr(LinkSender, "_control", apart)


def the_headers_of_ip_are_forgotten(patch: Patch) -> None:
    patch.setattr(SenderSettings, "datagram_bytes_max", property(lambda self: self.mtu_bytes))


def a_symbol_behind_the_last_is_taken(patch: Patch) -> None:
    well_formed = Header.well_formed

    def lax(self: Header, payload_bytes: int, count: int = 1) -> bool:
        return well_formed(attrs.evolve(self, symbol=0), payload_bytes, 1)

    patch.setattr(Header, "well_formed", lax)


def the_announced_timeout_changes(patch: Patch) -> None:
    announcement = LinkSender._announcement

    def changing(self: LinkSender) -> Announcement:
        said = announcement(self)
        return attrs.evolve(said, interruption_timeout_ms=said.interruption_timeout_ms + self.counters.messages)

    patch.setattr(LinkSender, "_announcement", changing)


def any_announcement_is_well_formed(patch: Patch) -> None:
    patch.setattr(Announcement, "well_formed", lambda self, header: True)


def the_check_of_messages_is_left_out(patch: Patch) -> None:
    def unchecked(buffer: bytearray) -> None:
        buffer += bytes(8)

    patch.setattr(sender, "end_message", unchecked)


def the_check_of_messages_is_skipped(patch: Patch) -> None:
    def trusting(message: memoryview) -> Message:
        covered = bytes(message[:-8])
        return envelope.open_message(memoryview(covered + xxh3_64_digest(covered)))

    patch.setattr(reassembler, "open_message", trusting)


# -- session.md -----------------------------------------------------------------------------------------------


def one_startup_is_enough(patch: Patch) -> None:
    patch.setattr(sender, "STARTUP_COPIES", 1)


def an_unknown_ingress_sends_at_once(patch: Patch) -> None:
    patch.setitem(
        states.SENDER_TABLE,
        (SenderState.NEW, SenderInput.START_UNKNOWN),
        (SenderEffect.SEND_STARTUP, SenderState.ACTIVE),
    )


def one_shutdown_is_enough(patch: Patch) -> None:
    patch.setattr(sender, "SHUTDOWN_COPIES", 1)


def there_is_no_fencing(patch: Patch) -> None:
    _sorted_otherwise(patch, ReceiverInput.STALE, ReceiverInput.NEWCOMER)


def succession_is_not_seen(patch: Patch) -> None:
    _sorted_otherwise(patch, ReceiverInput.SUCCESSOR, ReceiverInput.NEWCOMER)


def any_newcomer_is_a_successor(patch: Patch) -> None:
    _sorted_otherwise(patch, ReceiverInput.NEWCOMER, ReceiverInput.SUCCESSOR)


def a_shutdown_does_not_free_the_link(patch: Patch) -> None:
    _receiver_entry(
        patch, ReceiverState.FOLLOWING, ReceiverInput.OWN_SHUTDOWN, ReceiverEffect.ACCEPT, ReceiverState.FOLLOWING
    )


def a_late_datagram_undoes_the_shutdown(patch: Patch) -> None:
    _receiver_entry(patch, ReceiverState.CLOSED, ReceiverInput.OWN_DATA, ReceiverEffect.ACCEPT, ReceiverState.FOLLOWING)


def a_newcomer_takes_a_link_that_is_alive(patch: Patch) -> None:
    _receiver_entry(
        patch, ReceiverState.FOLLOWING, ReceiverInput.NEWCOMER, ReceiverEffect.TAKE_OVER, ReceiverState.FOLLOWING
    )


def silence_is_not_noticed(patch: Patch) -> None:
    _receiver_entry(
        patch, ReceiverState.FOLLOWING, ReceiverInput.SILENCE, ReceiverEffect.NOTHING, ReceiverState.FOLLOWING
    )


def stored_progress_is_not_used(patch: Patch) -> None:
    begin = LinkReceiver._begin

    def forgetful(self: LinkReceiver, header: Header, announcement: Announcement | None, *, taken: bool) -> None:
        if self._resume is not None:
            self._resume = attrs.evolve(self._resume, next_message=0)
        begin(self, header, announcement, taken=taken)

    patch.setattr(LinkReceiver, "_begin", forgetful)


def the_old_session_is_not_settled(patch: Patch) -> None:
    patch.setattr(Reassembler, "settle_known", lambda self, cause: None)


def a_conflict_is_never_raised(patch: Patch) -> None:
    patch.setattr(Follower, "_raise_conflict", lambda self, now_s: None)


def a_stale_session_is_no_rival(patch: Patch) -> None:
    take_over = Follower._take_over

    def never(self: Follower, *args: Any) -> None:
        take_over(self, *args)
        self._followed_since_s = math.inf

    patch.setattr(Follower, "_take_over", never)


def a_rival_is_never_forgotten(patch: Patch) -> None:
    handle_timeout = Follower.handle_timeout

    def remembering(self: Follower, now_s: float) -> None:
        rival, self._rival_heard_s = self._rival_heard_s, None
        handle_timeout(self, now_s)
        self._rival_heard_s = rival

    patch.setattr(Follower, "handle_timeout", remembering)


def a_foreign_link_is_not_told(patch: Patch) -> None:
    patch.setattr(LinkReceiver, "_note_foreign", lambda self, link_id, now_s: None)


def the_link_is_not_restored_by_another_session(patch: Patch) -> None:
    take_over = Follower._take_over

    def heard(self: Follower, epoch: int, what: ReceiverInput, before: ReceiverState, now_s: float) -> None:
        take_over(self, epoch, what, before, now_s)
        self._last_heard_s = now_s

    patch.setattr(Follower, "_take_over", heard)


# -- delivery.md ----------------------------------------------------------------------------------------------


def symbols_have_the_greatest_length(patch: Patch) -> None:
    cut_of = fragmenter.cut_of

    def unequal(message_bytes: int, symbol_bytes_max: int, *rest: int) -> Cut:
        cut = cut_of(message_bytes, symbol_bytes_max, *rest)
        symbol_bytes = min(symbol_bytes_max, message_bytes)
        return attrs.evolve(cut, symbol_bytes=symbol_bytes, symbols=-(-message_bytes // symbol_bytes))

    patch.setattr(sender, "cut_of", unequal)


def a_refused_message_uses_a_number(patch: Patch) -> None:
    compose = LinkSender._compose

    def counting(self: LinkSender, *args: Any, **compressed: Any) -> int:
        try:
            return compose(self, *args, **compressed)
        except LocalProtocolError:
            self.counters.messages += 1
            raise

    patch.setattr(LinkSender, "_compose", counting)


def a_symbol_that_contradicts_is_taken(patch: Patch) -> None:
    add = Reassembler.add

    def lax(self: Reassembler, header: Header, payloads: NDArray[np.uint8], now_s: float) -> Any:
        held = self._held.get(header.message)
        if held is not None and held.cut[1:] == (header.symbol_bytes, header.blocks, header.repair_symbols):
            header = attrs.evolve(header, message_bytes=held.cut[0])
        return add(self, header, payloads, now_s)

    patch.setattr(Reassembler, "add", lax)


def duplicates_are_taken(patch: Patch) -> None:
    take = SequenceWindow.take

    def lax(self: SequenceWindow, first: int, count: int) -> Any:
        pieces = take(self, first, count)
        return [(a, b, None if reason is DropReason.DUPLICATE else reason) for a, b, reason in pieces]

    patch.setattr(SequenceWindow, "take", lax)


def nothing_is_too_late(patch: Patch) -> None:
    patch.setattr(sequence, "SEQUENCE_WINDOW", 1 << 16)


def any_jump_is_believed(patch: Patch) -> None:
    patch.setattr(sequence, "JUMP_UNCONFIRMED_MAX", 1 << 40)


def missing_messages_are_never_given_up(patch: Patch) -> None:
    patch.setattr(Reassembler, "expire", lambda self, now_s: None)


def nothing_is_held_back(patch: Patch) -> None:
    add = Reassembler.add

    def hasty(self: Reassembler, header: Header, payloads: NDArray[np.uint8], now_s: float) -> Any:
        dropped = add(self, header, payloads, now_s)
        self.settle_complete(LossCause.GAP)
        return dropped

    patch.setattr(Reassembler, "add", hasty)


def a_full_egress_refuses_newer_messages(patch: Patch) -> None:
    hold = Reassembler._hold

    def refusing(self: Reassembler, number: int, header: Header) -> Any:
        full = self.held_bytes + reassembler._held_bytes(header) > self._bytes_max
        if self._held and (full or len(self._held) >= MESSAGES_HELD_MAX):
            return None
        return hold(self, number, header)

    patch.setattr(Reassembler, "_hold", refusing)


def a_heartbeat_teaches_nothing(patch: Patch) -> None:
    learn = LinkReceiver._learn

    def deaf(self: LinkReceiver, announcement: Announcement, now_s: float) -> None:
        learn(self, attrs.evolve(announcement, messages_sent=0), now_s)

    patch.setattr(LinkReceiver, "_learn", deaf)


def what_was_sent_before_joining_is_a_gap(patch: Patch) -> None:
    settle_below = Reassembler.settle_below

    def unspecific(self: Reassembler, number: int, cause: LossCause) -> None:
        early = cause in (LossCause.BEFORE_JOIN, LossCause.WHILE_AWAY)
        settle_below(self, number, LossCause.GAP if early else cause)

    patch.setattr(Reassembler, "settle_below", unspecific)


def missed_datagrams_of_earlier_sessions_are_forgotten(patch: Patch) -> None:
    patch.setattr(LinkReceiver, "datagrams_missed", property(lambda self: self._window.missing))


def records_are_counted_only_by_an_exact_announcement(patch: Patch) -> None:
    def exact(self: SessionAccounts, settled_below: int) -> None:
        said = self.announcement
        if said is not None and said.messages_sent == settled_below:
            self._enter_sent(said.records_sent)

    patch.setattr(SessionAccounts, "enter_announced", exact)


def holes_between_positions_are_missing(patch: Patch) -> None:
    def dense(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        gapless = [msgspec.structs.replace(r, previous=r.first - 1 if r.count else r.first) for r in runs]
        return settle(self, number, gapless)

    settle = DeliveredPositions.settle
    patch.setattr(DeliveredPositions, "settle", dense)


def records_that_are_sent_again_are_delivered_again(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def forgetful(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        missing, already = settle(self, number, runs)
        already.clear()
        return missing, already

    patch.setattr(DeliveredPositions, "settle", forgetful)


def a_redelivery_sets_the_position_back(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def backwards(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        result = settle(self, number, runs)
        for run in runs:
            key = (run.stream, run.partition)
            if key in self._delivered:
                self._delivered[key] = self._delivered[key]._replace(position=run.last)
        return result

    patch.setattr(DeliveredPositions, "settle", backwards)


def a_chain_of_another_session_counts(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def trusting(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        return settle(self, number, [msgspec.structs.replace(run, continues=True) for run in runs])

    patch.setattr(DeliveredPositions, "settle", trusting)


def a_chain_is_known_by_its_first_position(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def mistaking(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        return settle(self, number, [msgspec.structs.replace(run, chain=run.begun) for run in runs])

    patch.setattr(DeliveredPositions, "settle", mistaking)


def the_beginning_of_a_chain_is_not_missed(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def forgiving(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        return settle(self, number, [msgspec.structs.replace(run, begun=run.previous + 1) for run in runs])

    patch.setattr(DeliveredPositions, "settle", forgiving)


def what_was_before_is_missing_too(patch: Patch) -> None:
    follow = DeliveredPositions.follow
    patch.setattr(DeliveredPositions, "follow", lambda self, epoch, known_from: follow(self, epoch, 0))


def a_chain_goes_on_over_a_restart_of_its_source(patch: Patch) -> None:
    chained = SentPositions.chained

    def endless(self: SentPositions, number: int, runs: list[Run]) -> list[Run]:
        replace = msgspec.structs.replace
        claiming = [replace(run, previous=max(run.previous, 0)) if run.previous < run.first else run for run in runs]
        told = chained(self, number, claiming)
        return [replace(run, previous=given.previous) for run, given in zip(told, runs, strict=True)]

    patch.setattr(SentPositions, "chained", endless)


def positions_are_not_summed_up_before_the_end(patch: Patch) -> None:
    stop = LinkSender.stop

    def hasty(self: LinkSender) -> list[Burst]:
        self._positions = SentPositions()
        return stop(self)

    patch.setattr(LinkSender, "stop", hasty)


def positions_are_not_summed_up_when_idle(patch: Patch) -> None:
    patch.setattr(LinkSender, "_idle_summaries", lambda self, now_s: [])


# -- fec.md ---------------------------------------------------------------------------------------------------


def symbols_are_numbered_block_by_block(patch: Patch) -> None:
    """Blocks of consecutive symbols: a burst would hit one of them alone."""

    def consecutive(codec: fec.Codec, source: fec.Bytes2D, repair: fec.Bytes2D, blocks: int) -> None:
        size = -(-len(source) // blocks)
        order = [i for b in range(size) for i in range(b, len(source), size)]
        encode(codec, np.ascontiguousarray(source[order]), repair, blocks)

    encode = fec.encode
    patch.setattr(fec, "encode", consecutive)


def there_are_more_blocks_than_announced(patch: Patch) -> None:
    cut_of = fragmenter.cut_of

    def small(message_bytes: int, symbol_bytes_max: int, rows_max: int, repair_share: int, *rest: int) -> Cut:
        cut = cut_of(message_bytes, symbol_bytes_max, rows_max, repair_share, *rest)
        return attrs.evolve(cut, blocks=min(cut.symbols, cut.blocks + 1)) if repair_share else cut

    patch.setattr(sender, "cut_of", small)


def the_matrix_is_another_one(patch: Patch) -> None:
    matrix = fec.repair_matrix

    def shifted(block_symbols: int, repairs: int) -> fec.Bytes2D:
        return np.ascontiguousarray(matrix(block_symbols, repairs)[::-1])

    patch.setattr(fec, "repair_matrix", shifted)


def small_messages_have_no_repair_symbols(patch: Patch) -> None:
    def rounded_down(block_symbols: int, repair_share: int) -> int:
        return block_symbols * repair_share // fec.WHOLE

    patch.setattr(fec, "repair_symbols", rounded_down)


def repair_symbols_are_never_used(patch: Patch) -> None:
    add = reassembler._Partial.add

    def plain(self: Any, first: int, payloads: NDArray[np.uint8]) -> tuple[int, int]:
        source = payloads[: max(0, len(self.symbols) - first)]
        return add(self, first, source) if len(source) else (0, 0)

    patch.setattr(reassembler._Partial, "add", plain)


def a_block_may_lend_its_repair_symbols_to_another(patch: Patch) -> None:
    opened = reassembler._Partial.open

    def tolerant(self: Any, codec: fec.Codec, workspace: Workspace) -> tuple[Message, int]:
        try:
            return opened(self, codec, workspace)
        except ValueError as error:  # there are not enough of them
            raise RemoteProtocolError(str(error), reason="damaged") from error

    patch.setattr(reassembler._Patchwork, "complete", property(lambda self: bool(self.needs.sum() <= 0)))
    patch.setattr(reassembler._Partial, "open", tolerant)


def a_message_waits_for_its_repair_symbols(patch: Patch) -> None:
    """Of a message with repair symbols, one more symbol than is needed."""
    complete: Any = reassembler._Partial.__dict__["complete"]

    def late(self: Any) -> bool:
        return bool(complete.fget(self)) and not (self._patchwork is None and self.cut[3])

    patch.setattr(reassembler._Partial, "complete", property(late))


def repair_symbols_take_no_memory(patch: Patch) -> None:
    held_bytes = reassembler._held_bytes

    def light(header: Header) -> int:
        return held_bytes(attrs.evolve(header, repair_symbols=0))

    patch.setattr(reassembler, "_held_bytes", light)


# -- timers.md ------------------------------------------------------------------------------------------------


def data_takes_the_place_of_heartbeats(patch: Patch) -> None:
    compose = LinkSender.compose

    def postponing(self: LinkSender, runs: list[Run], record_count: int, write_body: Any, now_s: float) -> int:
        number = compose(self, runs, record_count, write_body, now_s)
        self._next_heartbeat_s = now_s + self.settings.heartbeat_interval_s
        return number

    patch.setattr(LinkSender, "compose", postponing)


def the_announced_timeout_is_ignored(patch: Patch) -> None:
    patch.setattr(Follower, "use_timeout", lambda self, interruption_timeout_s, now_s: None)


def the_timeout_of_the_session_before_is_kept(patch: Patch) -> None:
    begin = LinkReceiver._begin

    def keeping(self: LinkReceiver, header: Header, announcement: Announcement | None, *, taken: bool) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._follower, "use_timeout", lambda interruption_timeout_s, now_s: None)
            begin(self, header, announcement, taken=taken)

    patch.setattr(LinkReceiver, "_begin", keeping)


def a_datagram_overtakes_a_late_timer(patch: Patch) -> None:
    receive = LinkReceiver.receive

    def hasty(self: LinkReceiver, burst: Burst, now_s: float) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "handle_timeout", self._clock)
            receive(self, burst, now_s)

    patch.setattr(LinkReceiver, "receive", hasty)


def time_may_step_back(patch: Patch) -> None:
    def stepping(self: LinkReceiver, now_s: float) -> float:
        self._now_s = now_s
        return now_s

    patch.setattr(LinkReceiver, "_clock", stepping)


# -- limits.md ------------------------------------------------------------------------------------------------


def incomplete_messages_are_held_without_limit(patch: Patch) -> None:
    patch.setattr(reassembler, "MESSAGES_HELD_MAX", 1 << 30)


def memory_is_not_limited(patch: Patch) -> None:
    init = Reassembler.__init__

    def unlimited(self: Reassembler, **arguments: Any) -> None:
        init(self, **{**arguments, "bytes_max": 1 << 40})

    patch.setattr(Reassembler, "__init__", unlimited)


def positions_are_remembered_for_ever(patch: Patch) -> None:
    patch.setattr(positions, "POSITIONS_TRACKED_MAX", 1 << 30)


def the_newest_position_is_forgotten(patch: Patch) -> None:
    settle = DeliveredPositions.settle

    def newest(self: DeliveredPositions, number: int, runs: list[Run]) -> Any:
        kept: dict[StreamPartition, Standing] = dict(self._delivered)
        result = settle(self, number, runs)
        if len(kept) == POSITIONS_TRACKED_MAX:
            self._delivered.clear()
            self._delivered.update(kept)
        return result

    patch.setattr(DeliveredPositions, "settle", newest)


def messages_of_any_length_are_taken(patch: Patch) -> None:
    init = Reassembler.__init__

    def generous(self: Reassembler, **arguments: Any) -> None:
        init(self, **{**arguments, "message_bytes_max": 1 << 30})

    patch.setattr(Reassembler, "__init__", generous)


def a_conflict_is_raised_again_and_again(patch: Patch) -> None:
    def repeating(self: Follower, now_s: float) -> None:
        self._conflict = True
        self.events.append(ConflictDetected(epoch=self.epoch, rival_epoch=self._rival_epoch))

    patch.setattr(Follower, "_raise_conflict", repeating)


def _sorted_otherwise(patch: Patch, what: ReceiverInput, otherwise: ReceiverInput) -> None:
    sort = Follower._sort

    def wrong(self: Follower, *args: Any) -> ReceiverInput:
        found = sort(self, *args)
        return otherwise if found is what else found

    patch.setattr(Follower, "_sort", wrong)


def _receiver_entry(
    patch: Patch, state: ReceiverState, what: ReceiverInput, effect: ReceiverEffect, following: ReceiverState
) -> None:
    patch.setitem(states.RECEIVER_TABLE, (state, what), (effect, following))


def what_is_lost_is_never_taken(patch: Patch) -> None:
    def refuse(self: Reassembler, header: Header, payloads: NDArray[np.uint8]) -> tuple[int, DropReason]:
        return len(payloads), DropReason.NOT_NEEDED

    patch.setattr(Reassembler, "_add_late", refuse)


def a_late_message_is_lost_for_ever(patch: Patch) -> None:
    """So each repeat delivers it once more."""
    deliver = Reassembler._deliver_late

    def forgetful(self: Reassembler, number: int, partial: Any) -> None:
        deliver(self, number, partial)
        self._lost.add(number, number)

    patch.setattr(Reassembler, "_deliver_late", forgetful)


def lost_messages_take_no_memory(patch: Patch) -> None:
    fits = Reassembler._fits
    patch.setattr(Reassembler, "_fits", lambda self, size_bytes, *late, **more: fits(self, size_bytes, 0, 0))


def a_late_message_is_settled_like_any_other(patch: Patch) -> None:
    patch.setattr(DeliveredPositions, "settle_late", DeliveredPositions.settle)


def holes_are_told_before_order_is_settled(patch: Patch) -> None:
    before = DeliveredPositions.delivered_before

    def hasty(self: DeliveredPositions, runs: list[Run]) -> dict[StreamPartition, int]:
        already = before(self, runs)
        self.settle(0, runs)
        return already

    patch.setattr(DeliveredPositions, "delivered_before", hasty)


def what_was_delivered_ahead_is_forgotten(patch: Patch) -> None:
    """By an egress that is restarted."""
    new = LinkReceiver._new_reassembler
    patch.setattr(LinkReceiver, "_new_reassembler", lambda self, number, lost=(), ahead=(): new(self, number, lost))


def what_is_delivered_ahead_is_not_remembered_as_such(patch: Patch) -> None:
    """So that its repeat is delivered too."""

    def forget(self: Reassembler, number: int, ahead: Any) -> None: ...

    patch.setattr(Reassembler, "_note_ahead", forget)


# -- security.md ----------------------------------------------------------------------------------------------


def the_header_is_not_covered(patch: Patch) -> None:
    patch.setattr(security, "AESGCM", lambda key: _Unassociated(AESGCM(key)))


class _Unassociated:
    """AES-256-GCM that leaves the associated data out."""

    def __init__(self, cipher: AESGCM) -> None:
        self._cipher = cipher

    def encrypt_into(self, nonce: Any, data: Any, associated: Any, buffer: Any) -> int:
        return self._cipher.encrypt_into(nonce, data, b"", buffer)

    def decrypt_into(self, nonce: Any, data: Any, associated: Any, buffer: Any) -> int:
        return self._cipher.decrypt_into(nonce, data, b"", buffer)

    def decrypt(self, nonce: Any, data: Any, associated: Any) -> bytes:
        return self._cipher.decrypt(nonce, data, b"")


def all_sessions_have_one_key(patch: Patch) -> None:
    session_key = security.session_key

    def same(secret: bytes, *, link_id: int, key_id: int, epoch: int, generation: int) -> bytes:
        return session_key(secret, link_id=link_id, key_id=key_id, epoch=1, generation=generation)

    patch.setattr(security, "session_key", same)


def a_tag_that_does_not_fit_is_taken(patch: Patch) -> None:
    """Where the datagram comes in a burst."""
    open_each = Opener._open_each

    def trusting(self: Opener, *arguments: Any) -> list[int]:
        return [0] * len(open_each(self, *arguments))

    patch.setattr(Opener, "_open_each", trusting)


def an_unknown_key_is_a_bad_check(patch: Patch) -> None:
    cipher_for = Opener._cipher_for

    def simple(self: Opener, header: memoryview) -> Any:
        found = cipher_for(self, header)
        return DropReason.BAD_CHECK if found is DropReason.UNKNOWN_KEY else found

    patch.setattr(Opener, "_cipher_for", simple)


def the_key_stays_the_first(patch: Patch) -> None:
    use = Sealer.use
    patch.setattr(Sealer, "use", lambda self, keys: None if hasattr(self, "key_id") else use(self, keys))


def an_old_key_is_never_forgotten(patch: Patch) -> None:
    use = Opener.use

    def keeping(self: Opener, keys: Keys) -> None:
        use(self, attrs.evolve(keys, secrets={**self._secrets, **keys.secrets}))

    patch.setattr(Opener, "use", keeping)


def what_is_not_sealed_is_taken(patch: Patch) -> None:
    verify_one = Opener.verify_one

    def falling_back(self: Opener, datagram: memoryview) -> Any:
        payload, reason = verify_one(self, datagram)
        return (datagram[48:-8], None) if reason is DropReason.WRONG_SECURITY_MODE else (payload, reason)

    refusal = LinkReceiver._refusal

    def lax(self: LinkReceiver, header: Header) -> DropReason | None:
        return refusal(self, attrs.evolve(header, flags=header.flags | self._verifier.flags))

    patch.setattr(Opener, "verify_one", falling_back)
    patch.setattr(LinkReceiver, "_refusal", lax)


def an_alarm_can_be_forged_while_the_link_is_heard(patch: Patch) -> None:
    note = LinkReceiver._note_unverified

    def always(self: LinkReceiver, header: Header, reason: DropReason, now_s: float) -> None:
        state, self._follower._machine.state = self._follower._machine.state, ReceiverState.INTERRUPTED
        note(self, header, reason, now_s)
        self._follower._machine.state = state

    patch.setattr(LinkReceiver, "_note_unverified", always)


def a_copy_is_a_sign_of_life(patch: Patch) -> None:
    take_sequence = LinkReceiver._take_sequence

    def lively(self: LinkReceiver, first: int, count: int) -> list[tuple[int, int]]:
        new = take_sequence(self, first, count)
        if not new:
            self._follower._last_heard_s = self._now_s
        return new

    patch.setattr(LinkReceiver, "_take_sequence", lively)
