"""Quantities as they stand in a configuration file: `"1s"`, `"1 Gbit/s"`, `"64 MiB"`, `"host:port"`.

A `parse_` function takes what TOML made of the value and raises `ValueError` with the reason; a `format_` function
writes the shortest text that parses back to the same value.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import NewType

import attrs

Seconds = NewType("Seconds", float)
"""A duration. In a file: `"200ms"`, `"1s"`, `"5 min"`, `"1h"`, or a bare number of seconds."""

BitsPerSecond = NewType("BitsPerSecond", int)
"""A rate. In a file: `"800 kbit/s"`, `"1 Gbit/s"`; decimal prefixes; 0 is "no limit"."""

Bytes = NewType("Bytes", int)
"""A size. In a file: `"64 MiB"` (binary), `"64 MB"` (decimal), or a bare number of bytes."""


Percent = NewType("Percent", float)
"""A part of a whole. In a file: `"5%"`, `"0.5%"`, or 0."""


@attrs.frozen
class Address:
    """A host and a port. In a file: `"host:port"`, `"[::1]:port"`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_DURATIONS: Mapping[str, Fraction] = {
    "h": Fraction(3600),
    "min": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1_000_000),
}
_SIZES: Mapping[str, Fraction] = {
    "TiB": Fraction(1 << 40),
    "GiB": Fraction(1 << 30),
    "MiB": Fraction(1 << 20),
    "KiB": Fraction(1 << 10),
    "TB": Fraction(10**12),
    "GB": Fraction(10**9),
    "MB": Fraction(10**6),
    "kB": Fraction(10**3),
    "B": Fraction(1),
}
_RATES: Mapping[str, Fraction] = {
    "Tbit/s": Fraction(10**12),
    "Gbit/s": Fraction(10**9),
    "Mbit/s": Fraction(10**6),
    "kbit/s": Fraction(10**3),
    "bit/s": Fraction(1),
}
# Other ways to write the units above that cannot be mistaken for something else. "Mb" could mean MB or Mbit: refused.
_SYNONYMS: Mapping[str, str] = {
    "m": "min",
    "µs": "us",
    "KB": "kB",
    "Tbps": "Tbit/s",
    "Gbps": "Gbit/s",
    "Mbps": "Mbit/s",
    "kbps": "kbit/s",
    "bps": "bit/s",
}
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Zµ/]*)", re.ASCII)
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)\w([\w-]*\w)?(\.\w([\w-]*\w)?)*\.?", re.ASCII)


def _quantity(value: object, units: Mapping[str, Fraction], what: str) -> Fraction:
    """`value` in the unit whose factor is 1, which is also that of a bare number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not {what}")
    if not isinstance(value, str):
        if not math.isfinite(value):
            raise ValueError(f"not {what}")
        if value < 0:
            raise ValueError("negative")
        return Fraction(str(value))  # as it was written: 0.1 is a tenth, not the nearest binary fraction
    if value.strip().startswith("-"):
        raise ValueError("negative")
    found = _QUANTITY.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"not {what}")
    number, unit = found.groups()
    unit = _SYNONYMS.get(unit, unit)
    if unit and unit not in units:
        raise ValueError(f"unknown unit {unit!r} (units are {', '.join(units)})")
    return Fraction(number) * (units[unit] if unit else 1)


def _whole(quantity: Fraction, of: str) -> int:
    if quantity.denominator != 1:
        raise ValueError(f"not a whole number of {of}")
    return int(quantity)


def parse_seconds(value: object) -> Seconds:
    """A duration: `"200ms"`, `"1s"`, `"5 min"`, `"1h"`, or seconds as a number."""
    return Seconds(float(_quantity(value, _DURATIONS, "a duration")))


def parse_bytes(value: object) -> Bytes:
    """A size: `"64 MiB"`, `"64 MB"`, or bytes as a number. It must come out as whole bytes."""
    return Bytes(_whole(_quantity(value, _SIZES, "a size"), "bytes"))


def parse_rate(value: object) -> BitsPerSecond:
    """A rate: `"800 kbit/s"`, `"1 Gbit/s"`, `"unlimited"`, or bits per second as a number; 0 is no limit."""
    if value == "unlimited":
        return BitsPerSecond(0)
    return BitsPerSecond(_whole(_quantity(value, _RATES, "a rate"), "bits per second"))


def parse_percent(value: object) -> Percent:
    """A share: `"5%"`, `"0.5%"`; of bare numbers only 0, as 5 might be meant as five times as much."""
    text = value.strip() if isinstance(value, str) else ""
    percent = _quantity(text.removesuffix("%") if text else value, {}, "a percentage")
    if percent and not text.endswith("%"):
        raise ValueError('no "%" behind it')
    if (percent * 100).denominator != 1:
        raise ValueError("finer than a hundredth of a percent")
    return Percent(float(percent))


def parse_address(value: object) -> Address:
    """`"host:port"`, `"192.0.2.1:port"` or `"[2001:db8::1]:port"`; port 0 asks the system for a free one."""
    if not isinstance(value, str):
        raise ValueError("not an address")
    host, separator, port = value.strip().rpartition(":")
    if not separator:
        raise ValueError("no port")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError("not a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, 6):
            raise ValueError("not an IPv6 address in the brackets")
    elif not host:
        raise ValueError("no host (every address of this machine is 0.0.0.0)")
    elif _is_ip(host, 6):
        raise ValueError("an IPv6 address stands in brackets")
    elif _HOST_NAME.fullmatch(host) is None or (host.rpartition(".")[2].isdigit() and not _is_ip(host, 4)):
        raise ValueError("not a host name or an IP address")
    return Address(host, int(port))


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _format(quantity: Fraction, units: Mapping[str, Fraction]) -> str | None:
    """In the unit, of those that leave a whole number, that leaves the shortest; None when there is none."""
    numbers = {unit: quantity / factor for unit, factor in units.items()}
    texts = [
        f"{number.numerator} {unit}" for unit, number in numbers.items() if number >= 1 and number.denominator == 1
    ]
    return min(texts, key=lambda text: text.index(" "), default=None)


def format_seconds(seconds: float) -> str:
    """`"200ms"`, `"1s"`, `"5 min"`."""
    text = _format(Fraction(str(seconds)), _DURATIONS) or f"{Decimal(str(seconds)):f} s"
    return text if text.endswith("min") else text.replace(" ", "")


def format_bytes(size_bytes: int) -> str:
    """`"64 MiB"`, `"64 MB"`, `"1500 B"`."""
    return _format(Fraction(size_bytes), _SIZES) or "0 B"


def format_rate(rate_bps: int) -> str:
    """`"1 Gbit/s"`; `"unlimited"` for 0."""
    return _format(Fraction(rate_bps), _RATES) or "unlimited"


def format_percent(percent: float) -> str:
    """`"5%"`, `"0.5%"`."""
    return f"{percent:g}%"
