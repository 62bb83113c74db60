"""What two copies have in common."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.dedup.identity import make_fingerprint, origins_of
from gapconn.record import Header

BYTES = st.none() | st.binary(max_size=6)


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        (b"c1/orders/3/17", (b"c1/orders/3", 17)),
        (b"a/b/c/orders/0/0", (b"a/b/c/orders/0", 0)),
        (b"c1/orders/3/", None),
        (b"c1/orders/3/-1", None),
        (b"c1/orders/3/1e3", None),
        (b"3/17", None),
        (b"c1/orders/3/99999999999999999999", None),
        (b"c1/orders/3/9999999999999999999", None),
        (b"", None),
        (None, None),
        ("c1/orders/3/\u0663".encode(), None),
    ],
)
def test_an_origin_is_read_from_its_header(value: bytes | None, origin: tuple[bytes, int] | None) -> None:
    assert origins_of([[("other", b"x"), ("gapconn-origin", value)]]) == [origin]


def test_without_the_header_there_is_no_origin_and_the_last_one_counts() -> None:
    two: list[Header] = [("gapconn-origin", b"c1/t/0/1"), ("gapconn-origin", b"c2/t/0/2")]
    assert origins_of([None, [], [("x", b"y")], two]) == [None, None, None, (b"c2/t/0", 2)]


@given(BYTES, BYTES, BYTES, BYTES)
def test_a_hash_is_the_same_for_the_same_key_and_value_only(
    key: bytes | None, value: bytes | None, other_key: bytes | None, other_value: bytes | None
) -> None:
    fingerprint = make_fingerprint("hash")
    same = fingerprint("t", key, value, None) == fingerprint("t", other_key, other_value, [("h", b"1")])
    assert same == ((key, value) == (other_key, other_value))


def test_ids_of_different_topics_are_different() -> None:
    fingerprint = make_fingerprint("hash")
    assert fingerprint("a", b"k", b"v", None) != fingerprint("b", b"k", b"v", None)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"order": {"id": 7}, "at": 1}, True),
        ({"order": {"id": None}}, False),
        ({"order": 7}, False),
        ({}, False),
        ([1], False),
    ],
)
def test_a_field_is_found_by_its_path(value: object, found: bool) -> None:
    fingerprint = make_fingerprint("field", field="order.id")
    assert (fingerprint("t", None, json.dumps(value).encode(), None) is not None) == found


def test_a_field_counts_by_its_value_whatever_stands_beside_it() -> None:
    fingerprint = make_fingerprint("field", field="id")
    one = fingerprint("t", b"k", b'{"id": {"a": 1, "b": 2}, "link": "a"}', None)
    assert one == fingerprint("t", None, b'{"link": "b", "id": {"b": 2, "a": 1}}', None)
    assert one != fingerprint("t", None, b'{"id": {"a": 1, "b": 3}}', None)
    assert fingerprint("t", None, b'{"id": 1}', None) != fingerprint("t", None, b'{"id": "1"}', None)


@pytest.mark.parametrize("value", [None, b"", b"no json", b"\xff\xfe", b"{"])
def test_what_is_no_json_has_no_field(value: bytes | None) -> None:
    assert make_fingerprint("field", field="id")("t", None, value, None) is None


def test_a_header_counts_by_its_last_value() -> None:
    fingerprint = make_fingerprint("header", header="id")
    one = fingerprint("t", None, b"x", [("id", b"0"), ("id", b"1")])
    assert one == fingerprint("t", None, b"y", [("id", b"1"), ("other", b"2")])
    assert one is not None
    assert fingerprint("t", None, b"x", [("id", None)]) is None
    assert fingerprint("t", None, b"x", None) is None
