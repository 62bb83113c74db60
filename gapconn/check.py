"""`gapconn check`: one configuration on its own, or several that are to run side by side.

An ingress has exactly one egress, and the other way round (R1). Every process enforces what it can see; what only shows
when the configurations lie side by side is refused here.

What is unique in the network (link names, link ids, destinations) must differ always. What is unique on a host
(listening ports, watched directories) must differ where ends share one: all ingresses are taken to run on one host, and
so are egresses that are reached by the same host name, unless the caller says that every end has a host of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import attrs

from gapconn.admin.token import load_token
from gapconn.config import Pair, Role, SinkSection, SourceSection, ip_of, public_values
from gapconn.errors import ConfigError
from gapconn.keys import load_keys
from gapconn.pair_file import load_pair
from gapconn.units import Address, format_percent, format_rate, format_seconds
from gapconn.wording import given_text

_UNSET_VARIABLE = re.compile(r": (source|sink)\.[^:]+: the environment variable .* is not set")
_LOCALHOST = ("localhost", "127.0.0.1", "::1")


@attrs.frozen(kw_only=True)
class Report:
    """What a check found."""

    pairs: list[tuple[Path, Pair]]
    """The configurations that are valid on their own."""
    problems: list[str]
    """One sentence each; empty when all may run as they are."""
    warnings: list[str] = attrs.field(factory=list)
    """What may run, and is most likely not meant so."""
    ends: list[str] = attrs.field(factory=list)
    """The ends that topologies would run."""
    others: list[str] = attrs.field(factory=list)
    """Files of directories that are valid on their own, and of what kind: a line each."""
    left_out: list[str] = attrs.field(factory=list)
    """Files of directories that were not checked, and why: a line each."""


def check(
    paths: Iterable[Path], environ: Mapping[str, str], *, role: Role | None = None, separate_hosts: bool = False
) -> Report:
    """Load every file, and compare those that are valid with each other.

    Args:
        paths: The files.
        environ: The environment, which counts for all of them.
        role: Check the files as this end reads them.
        separate_hosts: Every ingress and every egress has a host (or container) of its own: what is unique on a host
            is not compared.
    """
    pairs: list[tuple[Path, Pair]] = []
    problems: list[str] = []
    for path in paths:
        try:
            pair = load_pair(path, environ, role=role)
            _check_key_file(path, pair)
            _check_token_file(path, pair, role)
            pairs.append((path, pair))
        except ConfigError as error:
            problems += error.problems if role else map(_with_advice, error.problems)
    for (path, pair), (other_path, other) in combinations(pairs, 2):
        problems += [f"{path} and {other_path}: {problem}" for problem in network_conflicts(pair, other)]
        if not separate_hosts:
            problems += [
                f"{path} and {other_path}: {problem} (if they are on different hosts, check with --separate-hosts)"
                for problem in host_conflicts(pair, other)
            ]
    return Report(pairs=pairs, problems=list(dict.fromkeys(problems)))


def _check_key_file(path: Path, pair: Pair) -> None:
    if pair.link.security.sealed:
        try:
            load_keys(Path(pair.link.security.key_file))
        except ConfigError as error:
            raise ConfigError([f"{path}: link.security.key_file: {problem}" for problem in error.problems]) from None


def _check_token_file(path: Path, pair: Pair, role: Role | None) -> None:
    """Only the ingress needs it: on another host it may be missing."""
    if pair.admin is None or not pair.admin.token_file or role is Role.EGRESS:
        return
    token_file = Path(pair.admin.token_file)
    if role is Role.INGRESS or token_file.exists():
        try:
            load_token(token_file)
        except ConfigError as error:
            raise ConfigError([f"{path}: admin.token_file: {problem}" for problem in error.problems]) from None


def _with_advice(problem: str) -> str:
    """A variable that is not set here may be one that only the other end needs."""
    unset = _UNSET_VARIABLE.search(problem)
    if unset is None:
        return problem
    other = {"source": Role.EGRESS, "sink": Role.INGRESS}[unset[1]]
    return f"{problem} (to check the file for the other end only: --role {other.value})"


def network_conflicts(a: Pair, b: Pair) -> Iterator[str]:
    """What two pairs must not have in common wherever they run, a sentence each."""
    same_target = _same_target(a, b)
    if a.link.name == b.link.name and same_target:
        yield f"both are link {a.link.name!r}: two ingresses on one egress, but every egress has exactly one ingress"
    elif a.link.name == b.link.name:
        yield (
            f"both are link {a.link.name!r}, to {a.link.address} and to {b.link.address}: one ingress for two egresses,"
            " but every ingress has exactly one egress; give one of them a link.name of its own"
        )
    elif same_target:
        yield (
            f"both send to {b.link.address}: two ingresses on one egress, but every egress has exactly one ingress;"
            " give one of them a link.address of its own"
        )
    if a.link.name != b.link.name and a.link.id == b.link.id:
        yield (
            f"links {a.link.name!r} and {b.link.name!r} have the same id {a.link.id}, so neither egress could tell its"
            " ingress from the other; give one of them a link.id of its own"
        )


def host_conflicts(a: Pair, b: Pair, *, egresses: bool = True) -> Iterator[str]:
    """What two pairs must not have in common on one host; `egresses`: also where their egresses listen."""
    if egresses and not _same_target(a, b) and _egresses_collide(a, b):
        yield (
            f"both egresses would listen on port {a.link.listen.port} of one host ({a.link.listen} and"
            f" {b.link.listen}); give one of them a link.bind or link.address of its own"
        )
    if a.admin is not None and b.admin is not None and _overlap(a.admin.listen, b.admin.listen):
        yield f"both would serve [admin] on {b.admin.listen}; give one of them an admin.listen of its own"
    if a.source is not None and b.source is not None:
        yield from _source_conflicts(a.source, b.source)


def _source_conflicts(a: SourceSection, b: SourceSection) -> Iterator[str]:
    """By the keys `listen` and `directory`, which mean the same in every source that has them."""
    ours, theirs = a.config, b.config
    if a.type == b.type and _both(ours, theirs, "listen", Address) and _overlap(ours.listen, theirs.listen):
        yield (
            f"both would take {a.type} data on {theirs.listen}: one source for two egresses; give one of them a"
            " source.listen of its own"
        )
    if _both(ours, theirs, "directory", str | Path) and _nested(Path(ours.directory), Path(theirs.directory)):
        yield (
            f"both would take files from {theirs.directory}: one source for two egresses; give one of them a"
            " source.directory of its own, outside of the other's"
        )
    member = getattr(ours, "group_instance_id", "")
    if member and member == getattr(theirs, "group_instance_id", "") and ours.group_id == theirs.group_id:
        yield (
            f"both would be member {member!r} of group {ours.group_id!r}: the broker lets only one of them in; give one"
            " of them a source.group_instance_id of its own"
        )
    if _both(ours, theirs, "state_file", str) and Path(ours.state_file).resolve() == Path(theirs.state_file).resolve():
        yield f"both would remember their files in {theirs.state_file}; give one of them a source.state_file of its own"


def _same_target(a: Pair, b: Pair) -> bool:
    return a.link.address.port == b.link.address.port and _same_host(a.link.address.host, b.link.address.host)


def _egresses_collide(a: Pair, b: Pair) -> bool:
    if a.link.listen.port != b.link.listen.port:
        return False
    hosts = a.link.listen.host, b.link.listen.host
    if any(_is_wildcard(host) for host in hosts):
        return _same_host(a.link.address.host, b.link.address.host)
    return _same_host(*hosts)


def _both(ours: Any, theirs: Any, key: str, kind: Any) -> bool:
    return isinstance(getattr(ours, key, None), kind) and isinstance(getattr(theirs, key, None), kind)


def _overlap(a: Address, b: Address) -> bool:
    """Whether two sockets of one host cannot listen on these both."""
    if a.port != b.port or a.port == 0:
        return False
    return _is_wildcard(a.host) or _is_wildcard(b.host) or _same_host(a.host, b.host)


def _is_wildcard(host: str) -> bool:
    ip = ip_of(host)
    return ip is not None and ip.is_unspecified


def _same_host(a: str, b: str) -> bool:
    """Whether two names or addresses are the same. Names are compared as written: a check looks nothing up."""
    a, b = a.lower().rstrip("."), b.lower().rstrip(".")
    if "localhost" in (a, b):
        return a in _LOCALHOST and b in _LOCALHOST
    return a == b or (ip_of(a) is not None and ip_of(a) == ip_of(b))


def _nested(a: Path, b: Path) -> bool:
    a, b = a.resolve(), b.resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


def summary(pair: Pair) -> list[str]:
    """What a pair does, in lines for people."""
    link = pair.link
    parts = [
        f"to {link.address}",
        *([f"listening on {link.bind}"] if link.bind else []),
        f"rate {format_rate(link.rate)}",
        f"MTU {link.mtu_bytes}",
        f"repair {format_percent(link.fec.repair)}" if link.fec.repair else "no repair",
        *([f"sealed by {link.security.mode}"] if link.security.sealed else []),
        f"heartbeat every {format_seconds(link.heartbeat_interval)}",
        f"id {link.id}",
    ]
    lines = [
        f"source  {_section_words(pair.source)}",
        f"link    {link.name}: {', '.join(parts)}",
        f"sink    {_section_words(pair.sink)}",
    ]
    if pair.admin is not None:
        lines.append(f"admin   http://{pair.admin.listen}")
        if link.address.host in _LOCALHOST and pair.admin.listen.port != 0:
            lines.append("note    both ends are on this host: give one another port by GAPCONN_ADMIN_LISTEN=host:port")
    directory = getattr(pair.source.config, "directory", None) if pair.source else None
    if isinstance(directory, str | Path) and not Path(directory).is_dir():
        lines.append(f"note    source.directory {str(directory)!r} does not exist on this host; the ingress needs it")
    return lines


def _section_words(section: SourceSection | SinkSection | None) -> str:
    if section is None:
        return "not in this file"
    given = given_text(section.config)
    return f"{section.type}: {given}" if given else section.type


def facts(pair: Pair) -> dict[str, Any]:
    """The whole configuration of a pair for programs, in values that JSON has, without what is secret."""
    return {
        "link": public_values(pair.link),
        "source": None if pair.source is None else {"type": pair.source.type, **public_values(pair.source.config)},
        "sink": None if pair.sink is None else {"type": pair.sink.type, **public_values(pair.sink.config)},
        "spool": None if pair.spool is None else public_values(pair.spool),
        "repeat_buffer": None if pair.repeat_buffer is None else public_values(pair.repeat_buffer),
        "admin": None if pair.admin is None else public_values(pair.admin),
        "log": public_values(pair.log),
    }
