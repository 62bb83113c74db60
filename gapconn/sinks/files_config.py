"""Keys of `[sink]` with `type = "files"`."""

from __future__ import annotations

from typing import Literal

import attrs

from gapconn.config import option


@attrs.frozen(kw_only=True)
class FilesSinkConfig:
    """Keys of `[sink]` with `type = "files"`."""

    directory: str = option(
        help="Where files are put. It is created if absent. Nothing outside it is ever written, whatever a name says.",
        validator=attrs.validators.min_len(1),
    )
    overwrite: Literal["replace", "keep", "number"] = option(
        default="replace",
        help="When a file of the name exists: `replace` it atomically; `keep` the old one and throw the new one away, "
        "counted; `number` the new one (`name.1`).",
    )
    fsync: bool = option(
        default=True,
        help="Have each file on the disk before it counts as delivered. Without it a power cut loses files.",
    )
    preserve: bool = option(
        default=True,
        help="Give files the time of modification and the permission bits of the original (never setuid or setgid).",
    )
