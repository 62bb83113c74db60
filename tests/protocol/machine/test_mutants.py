"""Seeded bugs of the core are found: the suite can fail, in each area of the specification."""

from __future__ import annotations

import inspect

import pytest

from tests.protocol.machine import mutants as m
from tests.protocol.machine.mutants import EgressEndedError
from tests.protocol.machine.scenario import play, scenarios
from tests.protocol.machine.search import HUNT, LONG_HUNT, Profile, search
from tests.protocol.machine.world import small_limits


def hunt(*profiles: Profile) -> BaseException | None:
    """Look for a bug as the suite does, but only until something is found; what that was."""
    try:
        for scenario in scenarios().values():
            play(scenario)
        for profile in profiles:
            search(profile)
    except (AssertionError, pytest.fail.Exception, EgressEndedError) as found:
        return found
    return None


@pytest.mark.timeout(900)
def test_nothing_is_found_where_nothing_is_wrong() -> None:
    with small_limits():
        assert hunt(HUNT) is None


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(m.a_message_without_its_last_symbol_is_complete, marks=pytest.mark.req("GC-MOD-1", "GC-DLV-4")),
        pytest.param(m.messages_are_told_in_reverse, marks=pytest.mark.req("GC-MOD-2")),
        pytest.param(m.a_range_of_lost_messages_is_one_too_short, marks=pytest.mark.req("GC-MOD-4", "GC-DLV-10")),
        pytest.param(m.symbols_that_are_not_needed_are_not_counted, marks=pytest.mark.req("GC-MOD-5")),
        pytest.param(m.an_unknown_phase_ends_the_egress, marks=pytest.mark.req("GC-MOD-6")),
        pytest.param(m.the_check_of_datagrams_is_skipped, marks=pytest.mark.req("GC-WIRE-3")),
        pytest.param(m.every_damaged_datagram_is_bad_check, marks=pytest.mark.req("GC-WIRE-3")),
        pytest.param(m.unknown_flags_are_ignored, marks=pytest.mark.req("GC-WIRE-4")),
        pytest.param(m.announcements_have_a_sequence_of_their_own, marks=pytest.mark.req("GC-WIRE-5")),
        pytest.param(m.the_headers_of_ip_are_forgotten, marks=pytest.mark.req("GC-WIRE-6")),
        pytest.param(m.a_symbol_behind_the_last_is_taken, marks=pytest.mark.req("GC-WIRE-7")),
        pytest.param(m.the_announced_timeout_changes, marks=pytest.mark.req("GC-WIRE-8")),
        pytest.param(m.any_announcement_is_well_formed, marks=pytest.mark.req("GC-WIRE-9")),
        pytest.param(m.the_check_of_messages_is_left_out, marks=pytest.mark.req("GC-WIRE-10")),
        pytest.param(m.the_check_of_messages_is_skipped, marks=pytest.mark.req("GC-WIRE-11")),
        pytest.param(m.one_startup_is_enough, marks=pytest.mark.req("GC-SESS-2")),
        pytest.param(m.an_unknown_ingress_sends_at_once, marks=pytest.mark.req("GC-SESS-3")),
        pytest.param(m.one_shutdown_is_enough, marks=pytest.mark.req("GC-SESS-4")),
        pytest.param(m.there_is_no_fencing, marks=pytest.mark.req("GC-SESS-5")),
        pytest.param(m.succession_is_not_seen, marks=pytest.mark.req("GC-SESS-6")),
        pytest.param(m.any_newcomer_is_a_successor, marks=pytest.mark.req("GC-SESS-8")),
        pytest.param(m.a_shutdown_does_not_free_the_link, marks=pytest.mark.req("GC-SESS-7")),
        pytest.param(m.a_late_datagram_undoes_the_shutdown, marks=pytest.mark.req("GC-SESS-7", "GC-SESS-13")),
        pytest.param(m.a_newcomer_takes_a_link_that_is_alive, marks=pytest.mark.req("GC-SESS-8")),
        pytest.param(m.silence_is_not_noticed, marks=pytest.mark.req("GC-SESS-7", "GC-SESS-13")),
        pytest.param(m.stored_progress_is_not_used, marks=pytest.mark.req("GC-SESS-9")),
        pytest.param(m.the_old_session_is_not_settled, marks=pytest.mark.req("GC-SESS-10")),
        pytest.param(m.a_conflict_is_never_raised, marks=pytest.mark.req("GC-SESS-11")),
        pytest.param(m.a_stale_session_is_no_rival, marks=pytest.mark.req("GC-SESS-11")),
        pytest.param(m.a_rival_is_never_forgotten, marks=pytest.mark.req("GC-SESS-11")),
        pytest.param(m.a_foreign_link_is_not_told, marks=pytest.mark.req("GC-SESS-12")),
        pytest.param(m.the_link_is_not_restored_by_another_session, marks=pytest.mark.req("GC-SESS-13")),
        pytest.param(m.symbols_have_the_greatest_length, marks=pytest.mark.req("GC-DLV-2")),
        pytest.param(m.a_refused_message_uses_a_number, marks=pytest.mark.req("GC-DLV-2", "GC-DLV-3")),
        pytest.param(m.a_symbol_that_contradicts_is_taken, marks=pytest.mark.req("GC-DLV-5")),
        pytest.param(m.duplicates_are_taken, marks=pytest.mark.req("GC-DLV-6")),
        pytest.param(m.nothing_is_too_late, marks=pytest.mark.req("GC-DLV-6")),
        pytest.param(m.any_jump_is_believed, marks=pytest.mark.req("GC-DLV-7")),
        pytest.param(m.missing_messages_are_never_given_up, marks=pytest.mark.req("GC-DLV-8")),
        pytest.param(m.nothing_is_held_back, marks=pytest.mark.req("GC-DLV-8")),
        pytest.param(m.a_full_egress_refuses_newer_messages, marks=pytest.mark.req("GC-DLV-9")),
        pytest.param(m.a_heartbeat_teaches_nothing, marks=pytest.mark.req("GC-DLV-10")),
        pytest.param(m.what_was_sent_before_joining_is_a_gap, marks=pytest.mark.req("GC-DLV-11")),
        pytest.param(m.missed_datagrams_of_earlier_sessions_are_forgotten, marks=pytest.mark.req("GC-DLV-12")),
        pytest.param(m.records_are_counted_only_by_an_exact_announcement, marks=pytest.mark.req("GC-DLV-13")),
        pytest.param(m.holes_between_positions_are_missing, marks=pytest.mark.req("GC-DLV-14")),
        pytest.param(m.records_that_are_sent_again_are_delivered_again, marks=pytest.mark.req("GC-DLV-15")),
        pytest.param(m.a_redelivery_sets_the_position_back, marks=pytest.mark.req("GC-DLV-15")),
        pytest.param(m.a_chain_of_another_session_counts, marks=pytest.mark.req("GC-DLV-14", "GC-DLV-15")),
        pytest.param(m.a_chain_is_known_by_its_first_position, marks=pytest.mark.req("GC-DLV-14", "GC-DLV-15")),
        pytest.param(m.the_beginning_of_a_chain_is_not_missed, marks=pytest.mark.req("GC-DLV-14")),
        pytest.param(m.what_was_before_is_missing_too, marks=pytest.mark.req("GC-DLV-14")),
        pytest.param(m.a_chain_goes_on_over_a_restart_of_its_source, marks=pytest.mark.req("GC-DLV-16")),
        pytest.param(m.positions_are_not_summed_up_before_the_end, marks=pytest.mark.req("GC-DLV-17")),
        pytest.param(m.positions_are_not_summed_up_when_idle, marks=pytest.mark.req("GC-DLV-17")),
        pytest.param(m.what_is_lost_is_never_taken, marks=pytest.mark.req("GC-DLV-31")),
        pytest.param(m.a_late_message_is_lost_for_ever, marks=pytest.mark.req("GC-DLV-31", "GC-MOD-2")),
        pytest.param(m.lost_messages_take_no_memory, marks=pytest.mark.req("GC-DLV-32", "GC-LIM-1")),
        pytest.param(m.a_late_message_is_settled_like_any_other, marks=pytest.mark.req("GC-DLV-33")),
        pytest.param(m.holes_are_told_before_order_is_settled, marks=pytest.mark.req("GC-DLV-35", "GC-DLV-14")),
        pytest.param(m.what_was_delivered_ahead_is_forgotten, marks=pytest.mark.req("GC-DLV-36")),
        pytest.param(m.what_is_delivered_ahead_is_not_remembered_as_such, marks=pytest.mark.req("GC-DLV-35")),
        pytest.param(m.symbols_are_numbered_block_by_block, marks=pytest.mark.req("GC-FEC-1", "GC-FEC-2")),
        pytest.param(m.there_are_more_blocks_than_announced, marks=pytest.mark.req("GC-FEC-1")),
        pytest.param(m.the_matrix_is_another_one, marks=pytest.mark.req("GC-FEC-2")),
        pytest.param(m.small_messages_have_no_repair_symbols, marks=pytest.mark.req("GC-FEC-5")),
        pytest.param(m.repair_symbols_are_never_used, marks=pytest.mark.req("GC-FEC-3")),
        pytest.param(m.a_block_may_lend_its_repair_symbols_to_another, marks=pytest.mark.req("GC-FEC-3")),
        pytest.param(m.a_message_waits_for_its_repair_symbols, marks=pytest.mark.req("GC-FEC-4")),
        pytest.param(m.repair_symbols_take_no_memory, marks=pytest.mark.req("GC-LIM-1")),
        pytest.param(m.data_takes_the_place_of_heartbeats, marks=pytest.mark.req("GC-TIME-1")),
        pytest.param(m.the_announced_timeout_is_ignored, marks=pytest.mark.req("GC-TIME-2")),
        pytest.param(m.the_timeout_of_the_session_before_is_kept, marks=pytest.mark.req("GC-TIME-2")),
        pytest.param(m.a_datagram_overtakes_a_late_timer, marks=pytest.mark.req("GC-TIME-3")),
        pytest.param(m.time_may_step_back, marks=pytest.mark.req("GC-TIME-4")),
        pytest.param(m.incomplete_messages_are_held_without_limit, marks=pytest.mark.req("GC-LIM-1")),
        pytest.param(m.memory_is_not_limited, marks=pytest.mark.req("GC-LIM-1")),
        pytest.param(m.positions_are_remembered_for_ever, marks=pytest.mark.req("GC-LIM-1")),
        pytest.param(m.the_newest_position_is_forgotten, marks=pytest.mark.req("GC-LIM-1")),
        pytest.param(m.messages_of_any_length_are_taken, marks=pytest.mark.req("GC-LIM-2")),
        pytest.param(m.a_conflict_is_raised_again_and_again, marks=pytest.mark.req("GC-LIM-3")),
        pytest.param(m.a_copy_is_a_sign_of_life, marks=pytest.mark.req("GC-SESS-16")),
        pytest.param(m.the_header_is_not_covered, marks=pytest.mark.req("GC-SEC-1")),
        pytest.param(m.all_sessions_have_one_key, marks=pytest.mark.req("GC-SEC-2")),
        pytest.param(m.a_tag_that_does_not_fit_is_taken, marks=pytest.mark.req("GC-SEC-3")),
        pytest.param(m.an_unknown_key_is_a_bad_check, marks=pytest.mark.req("GC-SEC-3")),
        pytest.param(m.the_key_stays_the_first, marks=pytest.mark.req("GC-SEC-4")),
        pytest.param(m.an_old_key_is_never_forgotten, marks=pytest.mark.req("GC-SEC-4")),
        pytest.param(m.what_is_not_sealed_is_taken, marks=pytest.mark.req("GC-SEC-6")),
        pytest.param(m.an_alarm_can_be_forged_while_the_link_is_heard, marks=pytest.mark.req("GC-SEC-8")),
    ],
)
def test_a_seeded_bug_is_found(mutate: m.Mutant) -> None:
    with small_limits(), pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        assert hunt(HUNT, LONG_HUNT) is not None


def test_no_seeded_bug_is_left_out() -> None:
    """And none is put in that has no name here; each area of the specification has some."""
    (catalogue,) = [mark for mark in test_a_seeded_bug_is_found.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]  # set by the decorator
    put_in = [value for parameter in catalogue.args[1] for value in parameter.values]
    defined = [f for name, f in inspect.getmembers(m, inspect.isfunction) if f.__module__ == m.__name__]
    assert {f.__name__ for f in put_in} == {f.__name__ for f in defined if not f.__name__.startswith("_")}
    ids = [id_ for parameter in catalogue.args[1] for mark in parameter.marks for id_ in mark.args]
    assert {id_.split("-")[1] for id_ in ids} == {"MOD", "WIRE", "SESS", "DLV", "FEC", "SEC", "TIME", "LIM"}
