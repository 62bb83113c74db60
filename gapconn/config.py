"""The configuration of a pair: a model of each section, with what is allowed in it. `gapconn.pair_file` reads it."""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import attrs
from attrs.validators import ge, le

from gapconn.protocol.compression import ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN
from gapconn.sinks import Sink
from gapconn.sources import Source
from gapconn.structuring import unstructure
from gapconn.units import Address, BitsPerSecond, Bytes, Percent, Seconds, format_bytes, format_seconds

SourceClass: TypeAlias = type[Source]
SinkClass: TypeAlias = type[Sink]

REPEATS_MAX = 5
"""How often a message may be repeated: each time costs the whole rate of the data again."""
NAME_ALLOWED = "1 to 64 letters, digits, dots, underscores or hyphens"
MESSAGE_BYTES_HIGHEST = 64 * 1024 * 1024
"""What `message_bytes_max` may be at most (`message_bytes_max` in spec/registry.toml)."""


class Role(enum.Enum):
    """Which end of the pair a process is."""

    INGRESS = "ingress"
    EGRESS = "egress"


def option(
    *,
    help: str,  # noqa: A002
    default: Any = attrs.NOTHING,
    factory: Any = None,
    allowed: Any = None,
    secret: bool = False,
    validator: Any = None,
) -> Any:
    """A key of the configuration: an attrs field that also documents itself.

    Args:
        help: One sentence for the reference in the documentation and for error messages.
        default: The value when the key is absent; without one (and without `factory`) the key is required.
        factory: Makes the default, for mutable ones.
        allowed: The allowed values in words or as a tuple, when the type alone does not say it.
        secret: The value is never shown in logs or on the status page.
        validator: An attrs validator (or a list of them) that raises `ValueError` with what is wrong, in words that
            follow "pair.toml: link.name: ". The value and `allowed` are added to them.
    """
    metadata = {"help": help, "allowed": allowed, "secret": secret}
    if factory is not None:
        return attrs.field(factory=factory, validator=validator, metadata=metadata, repr=not secret)
    return attrs.field(default=default, validator=validator, metadata=metadata, repr=not secret)


def subsection(model: Any, *, help: str) -> Any:  # noqa: A002
    """A table inside a section, `[section.name]`, all of whose keys have defaults. `model` documents itself."""
    return attrs.field(factory=model, metadata={"help": help, "allowed": None, "secret": False, "subsection": model})


# The docstring of a default's factory is what the reference says about the default.


def _id_of_name(link: Link) -> int:
    """the first 4 bytes of the SHA-256 of `name`"""
    return int.from_bytes(hashlib.sha256(link.name.encode()).digest()[:4], "big") or 1


def _three_heartbeats(link: Link) -> Seconds:
    """3 heartbeat intervals"""
    return Seconds(3 * link.heartbeat_interval)


def _batch_default(link: Link) -> Bytes:
    """`"1 MiB"`, or `message_bytes_max` if that is less"""
    return Bytes(min(1024 * 1024, link.message_bytes_max))


def _reassembly_default(link: Link) -> Bytes:
    """`"64 MiB"`, or twice `message_bytes_max` if that is more"""
    return Bytes(max(64 * 1024 * 1024, 2 * link.message_bytes_max))


def _sink_buffer_default(link: Link) -> Bytes:
    """`"16 MiB"`, or `message_bytes_max` if that is more"""
    return Bytes(max(16 * 1024 * 1024, link.message_bytes_max))


def _state_directory() -> str:
    """`/var/lib/gapconn` for root, else `$XDG_STATE_HOME/gapconn` or `~/.local/state/gapconn`"""
    if os.geteuid() == 0:
        return "/var/lib/gapconn"
    return str(Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gapconn")


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is, or None when it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def name_is_plain(_: object, attribute: object, name: str) -> None:
    """A validator for names: see `NAME_ALLOWED`."""
    # It becomes a file name and a metric label.
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) is None or name in {".", ".."}:
        raise ValueError("not a name")


def _is_one_host(_: object, attribute: object, address: Address) -> None:
    if address.port == 0:
        raise ValueError("nothing can be sent to port 0")
    ip = ip_of(address.host)
    if ip is not None and ip.is_unspecified:
        raise ValueError("no destination (to listen on every address of the egress, set link.bind)")
    if ip is not None and (ip.is_multicast or address.host == "255.255.255.255"):
        raise ValueError("could reach several egresses, but an ingress has exactly one")


def _rate_is_usable(_: object, attribute: object, rate_bps: int) -> None:
    # Slower than this, the heartbeats alone fill the link; most likely the unit was forgotten.
    if 0 < rate_bps < 9600:
        raise ValueError("too slow")


def _survives_a_lost_heartbeat(link: Link, attribute: object, timeout_s: float) -> None:
    if timeout_s < 2 * link.heartbeat_interval:
        raise ValueError(f"shorter than 2 heartbeat intervals ({format_seconds(2 * link.heartbeat_interval)})")


def _fits_a_message(link: Link, attribute: object, size_bytes: int) -> None:
    if size_bytes > link.message_bytes_max:
        raise ValueError(f"more than message_bytes_max ({format_bytes(link.message_bytes_max)})")


def _holds_two_messages(link: Link, attribute: object, size_bytes: int) -> None:
    if size_bytes < 2 * link.message_bytes_max:
        raise ValueError(f"less than twice message_bytes_max ({format_bytes(2 * link.message_bytes_max)})")


def _holds_a_message(link: Link, attribute: object, size_bytes: int) -> None:
    if size_bytes < link.message_bytes_max:
        raise ValueError(f"less than message_bytes_max ({format_bytes(link.message_bytes_max)})")


def _are_delays(_: object, attribute: object, delays_s: list[float]) -> None:
    if any(delay_s <= 0 for delay_s in delays_s):
        raise ValueError("a delay of 0")
    if any(later <= earlier for earlier, later in itertools.pairwise(delays_s)):
        raise ValueError("not in rising order")
    if len(delays_s) > REPEATS_MAX or any(delay_s > 86400 for delay_s in delays_s):
        raise ValueError("too many, or too long")


def _goes_with_the_mode(security: Security, attribute: object, key_file: str) -> None:
    if security.sealed and not key_file:
        raise ValueError("missing, and sealed datagrams need it")
    if key_file and not security.sealed:
        raise ValueError('no use for it while security.mode is "none", and nothing would be sealed')


@attrs.frozen(kw_only=True)
class Security:
    """`[link.security]`: whether datagrams are encrypted and authenticated. Both ends need the same."""

    mode: Literal["none", "aes-256-gcm"] = option(
        default="none",
        help="`none` detects accidents but no forgery, and whoever sees the datagrams can read them; `aes-256-gcm` "
        "seals each datagram with a key of `key_file`.",
    )
    key_file: str = option(
        default="",
        help="The secrets of the link, made by `gapconn keygen`, with mode 0600 and the same at both ends. Changes of "
        "the file are noticed while the ends run.",
        allowed="a file, where `mode` is not `none`",
        validator=_goes_with_the_mode,
    )

    @property
    def sealed(self) -> bool:
        """Whether datagrams are sealed."""
        return self.mode != "none"


@attrs.frozen(kw_only=True)
class Fec:
    """`[link.fec]`: forward error correction. Only the ingress needs it: the egress learns it from the datagrams."""

    repair: Percent = option(
        default=Percent(5.0),
        help="Repair symbols that are sent behind each message, as a share of it, but at least one. So many datagrams "
        "of a message may be lost and are rebuilt. They count against `rate`.",
        allowed='0 to "100%"; 0 turns it off',
        validator=le(100),
    )

    @property
    def repair_share(self) -> int:
        """In hundredths of a percent."""
        return round(self.repair * 100)


def _none_or_a_mebibyte(_: object, attribute: object, size_bytes: int) -> None:
    if 0 < size_bytes < 1024 * 1024:
        raise ValueError("too small for a spool")


@attrs.frozen(kw_only=True)
class Link:
    """`[link]`: the way through the gap. Both ends must read the same values."""

    RENAMED: ClassVar[Mapping[str, str]] = {"reorder_timeout": "hold"}
    """Keys of earlier versions."""

    name: str = option(
        help="Name of the link, the same at both ends; no other link may have it.",
        allowed=NAME_ALLOWED,
        validator=name_is_plain,
    )
    id: int = option(
        default=attrs.Factory(_id_of_name, takes_self=True),
        help="Number of the link on the wire; set it if two names should ever give the same number.",
        allowed="1 to 4294967295",
        validator=[ge(1), le(2**32 - 1)],
    )
    address: Address = option(
        help="Where the ingress sends to, and where the egress listens unless `bind` is given.",
        validator=_is_one_host,
    )
    bind: Address | None = option(
        default=None,
        help='Where the egress listens, if that is not `address`: behind a translated address, or `"0.0.0.0:7400"` '
        "in a container.",
    )
    mtu_bytes: int = option(
        default=1500,
        help="Largest IP packet that crosses the gap whole; every datagram is made to fit.",
        allowed="576 to 65535",
        validator=[ge(576), le(65535)],
    )
    rate: BitsPerSecond = option(
        default=BitsPerSecond(1_000_000_000),
        help="What the ingress sends at most, over any 10 ms, all headers counted. Nothing tells a blind sender that "
        "it is too fast: keep this below what the gap and the egress can take.",
        allowed='at least "9600 bit/s", or 0 or "unlimited" for no pacing',
        validator=_rate_is_usable,
    )
    heartbeat_interval: Seconds = option(
        default=Seconds(1.0),
        help="How often the ingress says that it lives.",
        allowed='"10ms" to "1h"',
        validator=[ge(0.01), le(3600)],
    )
    interruption_timeout: Seconds = option(
        default=attrs.Factory(_three_heartbeats, takes_self=True),
        help="Silence after which the egress raises the alarm that the link is interrupted.",
        allowed='at least 2 heartbeat intervals, at most "24h"',
        validator=[_survives_a_lost_heartbeat, le(86400)],
    )
    order: Literal["strict", "available"] = option(
        default="strict",
        help="What the egress does while a message is missing. `strict`: those behind it wait for it, at most for "
        "`hold`. `available`: each message is delivered as soon as it is whole, and one that comes behind later ones "
        "is marked as late; only for sinks that take records.",
    )
    hold: Seconds = option(
        default=Seconds(0.2),
        help="How long the egress waits for a missing message before it reports it as lost and goes on.",
        allowed='0 to "1h"',
        validator=le(3600),
    )
    message_bytes_max: Bytes = option(
        default=Bytes(16 * 1024 * 1024),
        help="Largest message, and so the largest single record, that crosses.",
        allowed='"64 KiB" to "64 MiB"',
        validator=[ge(64 * 1024), le(MESSAGE_BYTES_HIGHEST)],
    )
    batch_bytes: Bytes = option(
        default=attrs.Factory(_batch_default, takes_self=True),
        help="Size that the source aims for when it puts data together to one message. Larger is faster, and more is "
        "lost with one datagram.",
        allowed='"1 KiB" to `message_bytes_max`',
        validator=[ge(1024), _fits_a_message],
    )
    compression: Literal["none", "zstd", "lz4"] = option(
        default="none",
        help="How the ingress compresses each message; one that would not get smaller crosses as it is. The egress "
        "needs no setting: it sees what comes.",
    )
    compression_level: int = option(
        default=ZSTD_LEVEL_MIN,
        help="Of `zstd`: higher takes longer and less of the link. `lz4` has no levels.",
        allowed=f"{ZSTD_LEVEL_MIN} to {ZSTD_LEVEL_MAX}",
        validator=[ge(ZSTD_LEVEL_MIN), le(ZSTD_LEVEL_MAX)],
    )
    reassembly_bytes_max: Bytes = option(
        default=attrs.Factory(_reassembly_default, takes_self=True),
        help="Memory of the egress for messages that are incomplete or wait for an earlier one.",
        allowed="at least twice `message_bytes_max`",
        validator=_holds_two_messages,
    )
    receive_buffer_bytes: Bytes = option(
        default=Bytes(32 * 1024 * 1024),
        help="Kernel buffer that the egress asks for; it carries the egress over moments when it is not scheduled.",
        allowed='"64 KiB" to "1 GiB"',
        validator=[ge(64 * 1024), le(1 << 30)],
    )
    sink_buffer_bytes: Bytes = option(
        default=attrs.Factory(_sink_buffer_default, takes_self=True),
        help="What the egress holds in memory for a slow sink before messages go through the spool on disk; without "
        "one, before it refuses the newest, counted and logged.",
        allowed="at least `message_bytes_max`",
        validator=_holds_a_message,
    )
    repeat: list[Seconds] = option(
        factory=list,
        help='When the ingress sends every message again, counted from the first time, such as `["30s", "10m"]`: from '
        "`[repeat_buffer]`, within `rate`, and only while nothing fresh is to be sent. The egress needs no setting.",
        allowed=f'up to {REPEATS_MAX} durations in rising order, each above 0 and at most "24h"',
        validator=_are_delays,
    )
    repair_when_idle: bool = option(
        default=False,
        help="Whether spare rate is used to send the repeats sooner: after a tenth of their delay at the earliest. "
        "With no `repeat`, every message is sent once more after a second while the link is idle.",
    )
    shutdown_grace: Seconds = option(
        default=Seconds(10.0),
        help="How long an end may take to send or deliver what it holds when it is told to stop.",
        allowed='0 to "1h"',
        validator=le(3600),
    )
    state_directory: str = option(
        factory=_state_directory,
        help="Where an end keeps what must survive a restart. Each link has files of its own in it.",
        allowed="a directory that can be written",
    )

    fec: Fec = subsection(Fec, help="Forward error correction.")
    security: Security = subsection(Security, help="Encryption and authentication.")

    @property
    def listen(self) -> Address:
        """Where the egress listens."""
        return self.bind or self.address

    @property
    def rate_bps(self) -> int:
        """Bits per second; 0 is no limit."""
        return self.rate

    @property
    def heartbeat_interval_s(self) -> float:
        return self.heartbeat_interval

    @property
    def interruption_timeout_s(self) -> float:
        return self.interruption_timeout

    @property
    def hold_s(self) -> float:
        return self.hold

    @property
    def repeat_s(self) -> list[float]:
        """After how many seconds each message is sent again."""
        return list(self.repeat)

    @property
    def shutdown_grace_s(self) -> float:
        return self.shutdown_grace


@attrs.frozen(kw_only=True)
class Spool:
    """`[spool]`: what the egress keeps on disk while the sink is slow or away. It is on without this section too."""

    directory: str | None = option(
        default=None,
        help="Where the spools are kept, each link's in a directory of its own; without it in `link.state_directory`.",
        allowed="a directory that can be written",
    )
    max_bytes: Bytes = option(
        default=Bytes(1024 * 1024 * 1024),
        help="What a link's spool may take; 0 does without one. When it is full the newest messages are refused, "
        "counted and logged.",
        allowed='0, or at least "1 MiB"',
        validator=_none_or_a_mebibyte,
    )
    keep_free_bytes: Bytes = option(
        default=Bytes(256 * 1024 * 1024),
        help="What the spool leaves free on its file system in any case: a full disk would stop more than the spool.",
    )
    after: Seconds = option(
        default=Seconds(1.0),
        help="What the sink has not accepted for so long is written to disk, and survives the end of the process.",
        allowed='0 to "1h"',
        validator=le(3600),
    )

    @property
    def after_s(self) -> float:
        return self.after


@attrs.frozen(kw_only=True)
class RepeatBuffer:
    """`[repeat_buffer]`: what the ingress keeps on disk of what it sent, to send it again.

    It is on where `link.repeat` or `link.repair_when_idle` is set, and where the file has this section.
    """

    directory: str | None = option(
        default=None,
        help="Where the buffers are kept, each link's in a directory of its own; without it in `link.state_directory`.",
        allowed="a directory that can be written",
    )
    max_bytes: Bytes = option(
        default=Bytes(1024 * 1024 * 1024),
        help="What a link's buffer may take. It fills up, and then the oldest messages are dropped.",
        allowed='at least "1 MiB"',
        validator=ge(1024 * 1024),
    )
    keep_free_bytes: Bytes = option(
        default=Bytes(256 * 1024 * 1024),
        help="What the buffer leaves free on its file system in any case.",
    )


@attrs.frozen(kw_only=True)
class Admin:
    """`[admin]`: the HTTP endpoint for health, readiness, metrics and status. Without this section there is none."""

    listen: Address = option(
        default=Address("127.0.0.1", 9464),
        help="Where it listens. Both ends read this key: where they share a host, give one of them another port by the "
        "environment variable `GAPCONN_ADMIN_LISTEN`.",
    )
    token_file: str = option(
        default="",
        help="One line, made by `openssl rand -hex 32`, that `gapconn pause`, `gapconn resume` and the monitor must "
        "show; with mode 0600. Without it nobody can control the ingress over HTTP. It is read at each request.",
        allowed="a file",
    )


@attrs.frozen(kw_only=True)
class Log:
    """`[log]`: what is written to standard error."""

    format: Literal["auto", "console", "json"] = option(
        default="auto",
        help="`console` is for people, `json` has one object a line; `auto` is `console` on a terminal, else `json`.",
    )
    level: Literal["debug", "info", "warning", "error"] = option(
        default="info", help="The least important messages that are written."
    )


@attrs.frozen(kw_only=True)
class SourceSection:
    """`[source]`: what the ingress reads."""

    type: str
    config: Any
    """Instance of `plugin_class.Config`."""
    plugin_class: SourceClass


@attrs.frozen(kw_only=True)
class SinkSection:
    """`[sink]`: what the egress writes."""

    type: str
    config: Any
    """Instance of `plugin_class.Config`."""
    plugin_class: SinkClass


@attrs.frozen(kw_only=True)
class Pair:
    """One link pair, as one end (or `gapconn check`, with both `source` and `sink`) sees it."""

    link: Link
    source: SourceSection | None = None
    """None for the egress, or where the file has no such section."""
    sink: SinkSection | None = None
    """None for the ingress, or where the file has no such section."""
    spool: Spool | None = None
    """None (only where a pair is made by a program) does without, as `max_bytes` 0 does."""
    repeat_buffer: RepeatBuffer | None = None
    """None: the ingress keeps nothing of what it sent."""
    admin: Admin | None = None
    log: Log = attrs.field(factory=Log)


def public_values(config: Any) -> dict[str, Any]:
    """The keys of a section with values that JSON has: seconds, bytes, bits per second; `***` for what is secret."""
    return {
        field.name: "***" if field.metadata.get("secret") else unstructure(getattr(config, field.name))
        for field in attrs.fields(type(config))
    }
