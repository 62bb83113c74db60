"""The configuration of a monitor: a TOML file of its own."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs.validators import ge, gt, le

from gapconn.admin.token import load_token
from gapconn.config import NAME_ALLOWED, Log, name_is_plain, option
from gapconn.errors import ConfigError
from gapconn.structuring import Given, structure
from gapconn.tables import Problems, read_tables
from gapconn.units import Address, Seconds

_SECTIONS: Final = ("monitor", "pair", "notify", "log")
_URL: Final = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?")


def _host_name() -> str:
    """the name of the host"""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "monitor"


def _is_given_url(_: object, attribute: object, url: str) -> None:
    if _URL.fullmatch(url) is None:
        raise ValueError("not a URL")


def _is_url(settings: object, attribute: object, url: str) -> None:
    if url:
        _is_given_url(settings, attribute, url)


@attrs.frozen(kw_only=True)
class Monitor:
    """`[monitor]`: how it watches, the same for all pairs."""

    name: str = option(
        factory=_host_name,
        help="Name of this monitor, which its holds have: no other monitor of the same pairs may have it, and a "
        "restart must not change it.",
        allowed=NAME_ALLOWED,
        validator=name_is_plain,
    )
    listen: Address = option(
        default=Address("127.0.0.1", 9470), help="Where its page, `/status` and `/metrics` are served."
    )
    interval: Seconds = option(
        default=Seconds(0.5),
        help="How often each end is asked.",
        allowed='"50ms" to "5 min"',
        validator=[ge(0.05), le(300)],
    )
    deadline: Seconds = option(
        default=Seconds(0.8),
        help="An end that has not answered by then is dead or hung. Time in which the monitor itself did not get to "
        "run does not count.",
        allowed='"50ms" to "1 min"',
        validator=[ge(0.05), le(60)],
    )
    failures: int = option(
        default=2,
        help="So many failed checks in a row take a pair out.",
        allowed="1 to 100",
        validator=[ge(1), le(100)],
    )
    recover_after: Seconds = option(
        default=Seconds(30.0),
        help="How long an egress must be healthy before its ingress works again. Doubled with each time that the pair "
        "was out.",
        allowed='more than 0, at most "24h"',
        validator=[gt(0), le(86400)],
    )
    hold_max: Seconds = option(
        default=Seconds(600.0),
        help="What `recover_after` grows to at most; and a pair that worked for so long begins with it again.",
        allowed='more than 0, at most "24h"',
        validator=[gt(0), le(86400)],
    )
    sink_stalled_after: Seconds = option(
        default=Seconds(30.0),
        help="An egress that only fills its spool, as its target takes nothing, has failed after so long; 0 never.",
        allowed='0 to "24h"',
        validator=le(86400),
    )
    interrupted_after: Seconds = option(
        default=Seconds(5.0),
        help="An egress that does not hear its ingress counts as failed once the ingress has answered here for so long "
        "all the same: then the gap between them is broken. 0 never.",
        allowed='0 to "24h"',
        validator=le(86400),
    )
    lease: Seconds = option(
        default=Seconds(60.0),
        help="The hold of another monitor that was not renewed for so long is taken away, if the egress is healthy.",
        allowed='"5s" to "24h"',
        validator=[ge(5), le(86400)],
    )
    action_timeout: Seconds = option(
        default=Seconds(10.0),
        help="How long a pause, a command or a notification may take.",
        allowed='"100ms" to "10 min"',
        validator=[ge(0.1), le(600)],
    )
    state_file: str = option(
        default="",
        help="Where a restart finds what it knew: positions, which pairs are out, how often they were. Without it, "
        "holds at the ingresses are found again, and what commands have stopped is not.",
        allowed="a file that can be written",
    )


@attrs.frozen(kw_only=True)
class WatchedPair:
    """`[pair.NAME]`: one pair to watch."""

    egress: str = option(help="Admin endpoint of the egress.", allowed='"http://host:port"', validator=_is_given_url)
    ingress: str = option(
        default="",
        help="Admin endpoint of the ingress. Needed for the action `http`, for gap reports, and to tell a broken gap "
        "from a dead ingress.",
        allowed='"http://host:port"',
        validator=_is_url,
    )
    token_file: str = option(
        default="", help="The token of the ingress: its `[admin] token_file`; mode 0600.", allowed="a file"
    )
    action: Literal["http", "command", "webhook"] = option(
        default="http",
        help="How the ingress is taken out: its own `/pause` (it goes back to where its egress stands, so nothing "
        "is lost), a command, or a webhook. The last two stop it where it is: what it sent in vain stays lost.",
    )
    pause_command: list[str] = option(factory=list, help="Program and arguments that take the ingress out.")
    resume_command: list[str] = option(factory=list, help="Program and arguments that let it work again.")
    action_url: str = option(
        default="",
        help="Gets a POST of JSON: `action` (`pause` or `resume`), `pair`, `reason`, `positions`.",
        allowed="a URL",
        validator=_is_url,
    )
    gap_reports: bool = option(
        default=False, help="Carry the gap journal of the egress to the ingress, which sends again what is missing."
    )
    gap_interval: Seconds = option(
        default=Seconds(10.0),
        help="How often the journal is looked at.",
        allowed='"100ms" to "24h"',
        validator=[ge(0.1), le(86400)],
    )
    gap_retry: Seconds = option(
        default=Seconds(600.0),
        help="What is still missing so long after it was reported is reported again.",
        allowed='"1s" to "30 d"',
        validator=ge(1),
    )

    def __attrs_post_init__(self) -> None:
        if self.action == "http" and not (self.ingress and self.token_file):
            raise ValueError('action = "http" needs ingress and token_file')
        if self.action == "command" and not (self.pause_command and self.resume_command):
            raise ValueError('action = "command" needs pause_command and resume_command')
        if self.action == "webhook" and not self.action_url:
            raise ValueError('action = "webhook" needs action_url')
        if self.gap_reports and not (self.ingress and self.token_file):
            raise ValueError("gap_reports needs ingress and token_file")


@attrs.frozen(kw_only=True)
class Notify:
    """`[notify]`: who is told what happens, beside the log."""

    webhook: str = option(default="", help="Gets a POST of JSON for each event.", allowed="a URL", validator=_is_url)
    alertmanager: str = option(
        default="",
        help="An Alertmanager: gets alerts (API v2) while something is wrong, and their end.",
        allowed='a URL without path, such as "http://alertmanager:9093"',
        validator=_is_url,
    )


@attrs.frozen(kw_only=True)
class NamedPair:
    """A pair with its name and its token."""

    name: str
    settings: WatchedPair
    token: str = attrs.field(default="", repr=False)

    @property
    def ingress(self) -> str:
        return self.settings.ingress

    @property
    def egress(self) -> str:
        return self.settings.egress


@attrs.frozen(kw_only=True)
class MonitorSettings:
    """What a monitor is to do."""

    monitor: Monitor
    pairs: list[NamedPair]
    notify: Notify
    log: Log


def load_monitor(path: Path, environ: Mapping[str, str], *, tokens: bool = True) -> MonitorSettings:
    """Read the configuration of a monitor, and with `tokens` those that it names, which only its own host has.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: Problems = {section: [] for section in ("", *_SECTIONS)}
    tables = read_tables(path, environ, _SECTIONS, problems)

    def section(model: Any, name: str) -> Any:
        return structure(model, tables.get(name, {}), label=f"{path}: {name}", problems=problems[name])

    monitor, notify, log = section(Monitor, "monitor"), section(Notify, "notify"), section(Log, "log")
    pairs = [
        pair
        for name, given in tables.get("pair", {}).items()
        if (pair := _read_pair(path, name, given, problems["pair"], tokens=tokens)) is not None
    ]
    if not tables.get("pair"):
        problems["pair"].append(f"{path}: pair: no pair to watch: write one as [pair.NAME]")
    ends = [url for pair in pairs for url in (pair.ingress, pair.egress) if url]
    problems["pair"] += [
        f"{path}: pair: {url} is there twice, but an end belongs to one pair"
        for url in dict.fromkeys(ends)
        if ends.count(url) > 1
    ]
    found = [problem for of_section in problems.values() for problem in of_section]
    if found or monitor is None or notify is None or log is None:
        raise ConfigError(found)
    return MonitorSettings(monitor=monitor, pairs=pairs, notify=notify, log=log)


def _read_pair(path: Path, name: str, given: Given, problems: list[str], *, tokens: bool) -> NamedPair | None:
    label = f"{path}: pair.{name}"
    table = next((candidate for candidate in given.candidates if isinstance(candidate, dict)), None)
    if table is None:
        if given.candidates:
            problems.append(f"{given.label}: not a table: write it as [pair.{name}]")
        return None
    try:
        name_is_plain(None, None, name)
    except ValueError as error:
        problems.append(f"{label}: {error}, allowed: {NAME_ALLOWED}")
    keys = {key: Given(label=f"{label}.{key}", candidates=(value,), shown=value) for key, value in table.items()}
    settings = structure(WatchedPair, keys, label=label, problems=problems)
    if settings is None:
        return None
    try:
        token = load_token(Path(settings.token_file)) if settings.token_file and tokens else ""
    except ConfigError as error:
        problems += [f"{label}.token_file: {problem}" for problem in error.problems]
        return None
    return NamedPair(name=name, settings=settings, token=token)
