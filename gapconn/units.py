"""Quantities as they stand in a configuration file: `"1s"`, `"1 Gbit/s"`, `"64 MiB"`, `"host:port"`."""

from __future__ import annotations

from typing import NewType

import attrs

Seconds = NewType("Seconds", float)
"""A duration. In a file: `"200ms"`, `"1s"`, `"5 min"`, `"1h"`, or a bare number of seconds."""

BitsPerSecond = NewType("BitsPerSecond", int)
"""A rate. In a file: `"800 kbit/s"`, `"1 Gbit/s"`; decimal prefixes; 0 is "no limit"."""

Bytes = NewType("Bytes", int)
"""A size. In a file: `"64 MiB"` (binary), `"64 MB"` (decimal), or a bare number of bytes."""


@attrs.frozen
class Address:
    """A host and a port. In a file: `"host:port"`, `"[::1]:port"`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
