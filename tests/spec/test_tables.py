"""The state tables: complete, and in the specification as they are in the code."""

from __future__ import annotations

import itertools

import pytest

from gapconn.protocol.states import (
    RECEIVER_TABLE,
    SENDER_TABLE,
    ReceiverEffect,
    ReceiverInput,
    ReceiverState,
    SenderEffect,
    SenderInput,
    SenderState,
)
from tests.spec.tables import SESSION_MD, with_tables


def test_the_sending_half_has_an_entry_for_every_state_and_input() -> None:
    assert set(SENDER_TABLE) == set(itertools.product(SenderState, SenderInput))
    assert {effect for effect, _ in SENDER_TABLE.values()} == set(SenderEffect)


def test_the_receiving_half_has_an_entry_for_every_state_and_input() -> None:
    assert set(RECEIVER_TABLE) == set(itertools.product(ReceiverState, ReceiverInput))
    assert {effect for effect, _ in RECEIVER_TABLE.values()} == set(ReceiverEffect)


def test_a_mistake_of_the_caller_changes_no_state() -> None:
    for (state, _), (effect, after) in SENDER_TABLE.items():
        if effect is SenderEffect.INVALID:
            assert after is state


def test_dropping_changes_no_state() -> None:
    for (state, _), (effect, after) in RECEIVER_TABLE.items():
        if effect in (ReceiverEffect.DROP_STALE, ReceiverEffect.DROP_CONFLICT):
            assert after is state


def test_the_specification_has_the_tables_of_the_code() -> None:
    text = SESSION_MD.read_text()
    assert with_tables(text) == text, "run `python -m tests.spec`"
    assert text.count("| input \\ state |") == 2


@pytest.mark.parametrize("text", ["", "<!-- table:sender -->\n<!-- /table:sender -->\n" * 2])
def test_a_missing_or_repeated_place_for_a_table_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="places for the table 'sender'"):
        with_tables(text)
