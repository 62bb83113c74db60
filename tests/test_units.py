"""Quantities: what is read, what is refused and why, and that what is written reads back the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.units import (
    Address,
    format_bytes,
    format_percent,
    format_rate,
    format_seconds,
    parse_address,
    parse_bytes,
    parse_percent,
    parse_rate,
    parse_seconds,
)

GOOD: list[tuple[Callable[[object], Any], object, Any]] = [
    (parse_seconds, "200ms", 0.2),
    (parse_seconds, "1s", 1.0),
    (parse_seconds, "5 min", 300.0),
    (parse_seconds, "5m", 300.0),
    (parse_seconds, "1h", 3600.0),
    (parse_seconds, "1.5 s", 1.5),
    (parse_seconds, "250us", 0.00025),
    (parse_seconds, "2", 2.0),
    (parse_seconds, 2, 2.0),
    (parse_seconds, 0.1, 0.1),
    (parse_seconds, 1e-7, 1e-7),
    (parse_seconds, 0, 0.0),
    (parse_bytes, "64 MiB", 67108864),
    (parse_bytes, "64 MB", 64000000),
    (parse_bytes, "1.5KiB", 1536),
    (parse_bytes, "16kB", 16000),
    (parse_bytes, "16 KB", 16000),
    (parse_bytes, "7 B", 7),
    (parse_bytes, "7", 7),
    (parse_bytes, 1024, 1024),
    (parse_bytes, 1024.0, 1024),
    (parse_rate, "800 kbit/s", 800_000),
    (parse_rate, "1 Gbit/s", 10**9),
    (parse_rate, "2.5Gbps", 2_500_000_000),
    (parse_rate, "9600 bit/s", 9600),
    (parse_rate, "unlimited", 0),
    (parse_percent, "5%", 5.0),
    (parse_percent, " 12.5 % ", 12.5),
    (parse_percent, "0.01%", 0.01),
    (parse_percent, "0%", 0.0),
    (parse_percent, "0", 0.0),
    (parse_percent, 0, 0.0),
    (parse_rate, 0, 0),
    (parse_address, "127.0.0.1:7400", Address("127.0.0.1", 7400)),
    (parse_address, "[::1]:7400", Address("::1", 7400)),
    (parse_address, "[fe80::1%eth0]:7400", Address("fe80::1%eth0", 7400)),
    (parse_address, "egress_a.example.org.:1", Address("egress_a.example.org.", 1)),
    (parse_address, "host:0", Address("host", 0)),
]

BAD: list[tuple[Callable[[object], Any], object, str]] = [
    (parse_seconds, "1 sec", "unknown unit 'sec' (units are h, min, s, ms, us)"),
    (parse_seconds, "soon", "not a duration"),
    (parse_seconds, "", "not a duration"),
    (parse_seconds, "1s 2s", "not a duration"),
    (parse_seconds, "-1s", "negative"),
    (parse_seconds, -1, "negative"),
    (parse_seconds, float("inf"), "not a duration"),
    (parse_seconds, float("nan"), "not a duration"),
    (parse_seconds, True, "not a duration"),
    (parse_seconds, ["1s"], "not a duration"),
    (parse_seconds, "1 MS", "unknown unit 'MS'"),
    (parse_bytes, "64 Mb", "unknown unit 'Mb'"),  # megabit or megabyte?
    (parse_bytes, "0.3 KiB", "not a whole number of bytes"),
    (parse_bytes, "1 Gbit/s", "unknown unit 'Gbit/s'"),
    (parse_bytes, None, "not a size"),
    (parse_rate, "1 GB/s", "unknown unit 'GB/s'"),
    (parse_rate, "1 Gb", "unknown unit 'Gb' (units are Tbit/s, Gbit/s, Mbit/s, kbit/s, bit/s)"),
    (parse_rate, "0.5 bit/s", "not a whole number of bits per second"),
    (parse_rate, "fast", "not a rate"),
    (parse_percent, "much", "not a percentage"),
    (parse_percent, "", "not a percentage"),
    (parse_percent, True, "not a percentage"),
    (parse_percent, 5, 'no "%" behind it'),
    (parse_percent, "5", 'no "%" behind it'),
    (parse_percent, 0.05, 'no "%" behind it'),
    (parse_percent, "-5%", "negative"),
    (parse_percent, "5%%", "not a percentage"),
    (parse_percent, "0.001%", "finer than a hundredth of a percent"),
    (parse_address, "7400", "no port"),
    (parse_address, 7400, "not an address"),
    (parse_address, "host:http", "not a port from 0 to 65535"),
    (parse_address, "host:65536", "not a port from 0 to 65535"),
    (parse_address, "host:", "not a port from 0 to 65535"),
    (parse_address, "host:٣", "not a port from 0 to 65535"),
    (parse_address, "::1:7400", "an IPv6 address stands in brackets"),
    (parse_address, "[host]:7400", "not an IPv6 address in the brackets"),
    (parse_address, ":7400", "no host"),
    (parse_address, "ho st:7400", "not a host name"),
    (parse_address, "300.1.1.1:7400", "not a host name"),
    (parse_address, "udp://host:7400", "not a host name"),
]


@pytest.mark.parametrize(("parse", "value", "expected"), GOOD)
def test_reads(parse: Callable[[object], Any], value: object, expected: Any) -> None:
    assert parse(value) == expected


@pytest.mark.parametrize(("parse", "value", "reason"), BAD)
def test_refuses_with_the_reason(parse: Callable[[object], Any], value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_seconds(0.2), "200ms"),
        (format_seconds(1.0), "1s"),
        (format_seconds(300.0), "5 min"),
        (format_seconds(0), "0s"),
        (format_bytes(64 << 20), "64 MiB"),
        (format_bytes(64_000_000), "64 MB"),
        (format_bytes(1500), "1500 B"),
        (format_bytes(0), "0 B"),
        (format_rate(10**9), "1 Gbit/s"),
        (format_rate(2_500_000), "2500 kbit/s"),
        (format_rate(0), "unlimited"),
        (format_percent(5.0), "5%"),
        (format_percent(12.5), "12.5%"),
        (format_percent(0.0), "0%"),
        (str(Address("::1", 1)), "[::1]:1"),
    ],
)
def test_writes(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(min_value=1e-9, max_value=1e6))
def test_written_durations_read_back_the_same(seconds: float) -> None:
    seconds = round(seconds, 9)
    assert parse_seconds(format_seconds(seconds)) == seconds


@given(st.integers(min_value=0, max_value=2**48))
def test_written_sizes_and_rates_read_back_the_same(number: int) -> None:
    assert parse_bytes(format_bytes(number)) == number
    assert parse_rate(format_rate(number)) == number


@given(st.ip_addresses(), st.integers(min_value=0, max_value=65535))
def test_written_addresses_read_back_the_same(ip: object, port: int) -> None:
    address = Address(str(ip), port)
    assert parse_address(str(address)) == address


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_seconds, parse_bytes, parse_rate, parse_percent, parse_address):
        with suppress(ValueError):
            assert parse(text) is not None
