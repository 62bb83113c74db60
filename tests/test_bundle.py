"""The list of what is missing crosses as JSON, as a QR code, and by hand: with mistakes, which are named."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.bundle import (
    ALPHABET,
    Bundle,
    BundleError,
    Lost,
    as_code,
    as_json,
    as_lines,
    bundle_of,
    read_bundle,
    rows_of,
)
from gapconn.journal import Entry
from gapconn.protocol.envelope import Span
from gapconn.ranges import RangeSet


def entry(number: int = 1, **places: list[tuple[int, int]]) -> Entry:
    return Entry(
        number=number, epoch=5, cause="gap", at_ms=1_000, last_at_ms=1_000, records=9, messages=RangeSet([(1, 2)]),
        missing={(name.rpartition("_")[0], int(name.rpartition("_")[2])): RangeSet(r) for name, r in places.items()},
    )  # fmt: skip


ENTRIES = [
    entry(1, orders_0=[(10, 19), (25, 25)], orders_11=[(0, 4)], **{"Zahlungen-größer_3": [(2**40, 2**40 + 500)]}),
    entry(2, orders_0=[(20, 24), (90_000, 91_234)], invoices_2=[(7, 7)]),
]
BUNDLE = bundle_of("orders", 7, ENTRIES)

bundles = st.builds(
    lambda entries: bundle_of("a-link", 2**32 - 1, entries),
    st.lists(
        st.builds(
            lambda places, epoch, messages: Entry(
                number=1, epoch=epoch, cause="gap", at_ms=0, last_at_ms=0, missing=places, messages=messages
            ),
            st.dictionaries(
                st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), st.integers(0, 2**31 - 1)),
                st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 10**6)), min_size=1).map(
                    lambda pairs: RangeSet((first, first + more) for first, more in pairs)
                ),
            ),
            st.integers(1, 2**64 - 1),
            st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 10**6))).map(
                lambda pairs: RangeSet((first, first + more) for first, more in pairs)
            ),
        ),
        max_size=3,
    ),
)


def test_what_is_missing_is_joined_over_all_entries() -> None:
    assert (
        Bundle(
            link="orders",
            link_id=7,
            spans=[
                Span("Zahlungen-größer", 3, 2**40, 2**40 + 500),
                Span("invoices", 2, 7, 7),
                Span("orders", 0, 10, 25),
                Span("orders", 0, 90_000, 91_234),
                Span("orders", 11, 0, 4),
            ],
            messages=(Lost(5, 1, 2),),
        )
        == BUNDLE
    )


def test_bytes_of_streams_are_left_out() -> None:
    of_file = Entry(number=1, epoch=1, cause="hole", at_ms=0, last_at_ms=0, missing={("a", None): RangeSet([(0, 9)])})
    assert bundle_of("orders", 7, [of_file, *ENTRIES]) == BUNDLE


@given(bundles)
@settings(deadline=None)
def test_it_is_read_as_it_was_written(bundle: Bundle) -> None:
    assert read_bundle(as_json(bundle, [])) == bundle
    assert read_bundle("\n".join(as_lines(bundle))) == bundle
    assert read_bundle(as_code(bundle)) == bundle


def test_the_lines_are_short_and_the_code_fits_a_qr_code_well() -> None:
    lines = as_lines(BUNDLE)
    assert max(map(len, lines)) <= 40
    assert len(lines) <= 9
    assert set(as_code(BUNDLE)) <= set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:")


def test_it_may_be_typed_carelessly() -> None:
    lines = as_lines(BUNDLE)
    typed = [line.lower().replace("0", "o").replace(": ", " :").replace(" ", "-", 2) for line in lines[1:]]
    typed = [line.replace("-:", ":", 1) for line in typed]
    first = lines[0].replace("1", "l") if not lines[0].startswith("1") else "1" + lines[0][1:].replace("1", "i")
    random.Random(1).shuffle(typed)
    assert read_bundle("\n\n".join(["gapconn gaps of link orders", *typed, first, lines[1]])) == BUNDLE


def test_every_wrong_character_is_found_and_its_line_named() -> None:
    lines = as_lines(BUNDLE)
    for number, line in enumerate(lines, 1):
        for place in range(line.index(":") + 1, len(line)):
            if line[place] == " ":
                continue
            wrong = ALPHABET[(ALPHABET.index(line[place]) + 1 + place % 31) % 32]
            if wrong == line[place]:
                continue
            typed = [*lines]
            typed[number - 1] = line[:place] + wrong + line[place + 1 :]
            with pytest.raises(BundleError) as caught:
                read_bundle("\n".join(typed))
            assert caught.value.problems == [
                f"line {number}: its check does not fit; compare it character by character"
            ]


@given(st.randoms(use_true_random=False))
@settings(deadline=None)
def test_neighbours_that_changed_places_are_found(rng: random.Random) -> None:
    lines = as_lines(BUNDLE)
    number = rng.randrange(len(lines))
    head, _, characters = lines[number].partition(": ")
    plain = characters.replace(" ", "")
    place = rng.randrange(len(plain) - 1)
    swapped = plain[:place] + plain[place + 1] + plain[place] + plain[place + 2 :]
    lines[number] = f"{head}: {swapped}"
    if swapped == plain:
        assert read_bundle("\n".join(lines)) == BUNDLE
    else:
        with pytest.raises(BundleError, match=f"^line {number + 1}: its check does not fit"):
            read_bundle("\n".join(lines))


def problems_of(lines: list[str]) -> list[str]:
    with pytest.raises(BundleError) as caught:
        read_bundle("\n".join(lines))
    return caught.value.problems


def test_missing_lines_and_lines_that_are_none_are_named() -> None:
    lines = as_lines(BUNDLE)
    last = len(lines)
    assert problems_of(lines[:2] + lines[3:-1]) == ["line 3: it is missing", f"line {last}: it is missing"]
    assert problems_of(lines[1:]) == ["line 1: it is missing"]
    other = as_lines(bundle_of("orders", 8, ENTRIES))
    assert "differs" in problems_of([*lines, other[0]])[0] or "all together" in problems_of([other[0], *lines[1:]])[0]
    assert problems_of(["2" + lines[0][1:], *lines[1:]])[0].startswith("line 2: its check does not fit")
    assert problems_of([lines[0] + "U", *lines[1:]]) == ["line 1: 'U' cannot be in it"]
    assert "begins with its number" in problems_of([*lines, "and so on"])[0]
    assert "no list" in problems_of([])[0]


@pytest.mark.parametrize("text", [
    "{", "{}", '{"format": "gapconn-gaps", "version": 2}', '{"format": "gapconn-gaps", "version": 1}',
    '{"format": "gapconn-gaps", "version": 1, "link": "a", "link_id": 7, "missing": [["t", 0, 9, 5]]}',
    '{"format": "gapconn-gaps", "version": 1, "link": "a", "link_id": 7, "missing": [["t", 0, "x", 5]]}',
    '{"format": "gapconn-gaps", "version": 1, "link": 1, "link_id": 7, "missing": []}',
])  # fmt: skip
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        read_bundle(text)


@given(st.text(max_size=80) | st.lists(st.integers(0, 9)).map(lambda n: "\n".join(f"{i}: {i}ABC" for i in n)))
@settings(deadline=None)
def test_whatever_is_read_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(BundleError):
        read_bundle(text)


def test_json_tells_everything_and_rows_every_range() -> None:
    content = json.loads(as_json(BUNDLE, ENTRIES))
    assert [each["number"] for each in content["entries"]] == [1, 2]
    rows = rows_of(ENTRIES)
    assert [row["kind"] for row in rows] == ["message"] + ["missing"] * 4 + ["message"] + ["missing"] * 3
    assert (rows[1]["stream"], rows[1]["partition"], rows[1]["first"], rows[1]["last"]) == ("orders", 0, 10, 19)
