"""The file of a pair: one TOML file that both ends read.

A value of the file is overridden by the environment variable `GAPCONN_<SECTION>_<KEY>`, and `${NAME}` in a string of
the file is replaced by the environment variable NAME. Whatever is wrong is collected and raised as one `ConfigError`.

An end reads the sections that concern it: for `load_pair(..., role=Role.INGRESS)` the secrets and plugins of `[sink]`
need not exist on the source side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from gapconn.config import Admin, Link, Log, Pair, RepeatBuffer, Role, SinkSection, SourceSection, Spool
from gapconn.errors import ConfigError
from gapconn.plugins import Carries, PluginRegistry
from gapconn.sinks import SINKS
from gapconn.sources import SOURCES
from gapconn.structuring import Given, structure
from gapconn.tables import Problems, Tables, read_tables
from gapconn.wording import suggestion

_SECTIONS = ("link", "source", "sink", "spool", "repeat_buffer", "admin", "log")


def load_pair(path: Path, environ: Mapping[str, str], *, role: Role | None = None, link_only: bool = False) -> Pair:
    """Read the configuration of a pair from the TOML file at `path`, overridden by `environ`.

    Args:
        path: The file.
        environ: The environment: overrides (`GAPCONN_...`), and what `${NAME}` stands for.
        role: Which end reads it. It needs its own section, and does not care what is wrong with the other end's, which
            becomes None. Without a role both are read where they exist.
        link_only: Neither `[source]` nor `[sink]` is needed; both become None, whatever is wrong with them.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: Problems = {section: [] for section in ("", *_SECTIONS)}
    tables = read_tables(path, environ, _SECTIONS, problems)

    link = admin = None
    if "link" in tables:
        link = structure(Link, tables["link"], label=f"{path}: link", problems=problems["link"])
    else:
        problems["link"].append(f"{path}: link: the section [link] is missing")
    if "admin" in tables:
        admin = structure(Admin, tables["admin"], label=f"{path}: admin", problems=problems["admin"])
    spool = structure(Spool, tables.get("spool", {}), label=f"{path}: spool", problems=problems["spool"])
    repeat_buffer = None
    if "repeat_buffer" in tables or (link is not None and (link.repeat or link.repair_when_idle)):
        repeat_buffer = structure(
            RepeatBuffer,
            tables.get("repeat_buffer", {}),
            label=f"{path}: repeat_buffer",
            problems=problems["repeat_buffer"],
        )
    log = structure(Log, tables.get("log", {}), label=f"{path}: log", problems=problems["log"])

    if link_only:
        for section in ("source", "sink"):
            tables.pop(section, None)
            problems[section].clear()
    source = _read_end(_SOURCE, path, tables, role, problems["source"])
    sink = _read_end(_SINK, path, tables, role, problems["sink"])
    if source is not None and sink is not None:
        problems[""] += _mismatch(path, source, sink)
    if role is not Role.INGRESS and sink is not None and link is not None and link.order == "available":
        problems[""] += _needs_order(path, sink)
    if role is Role.INGRESS:
        sink = None
        problems["sink"].clear()
        problems["spool"].clear()
    elif role is Role.EGRESS:
        source = repeat_buffer = None
        problems["source"].clear()
        problems["repeat_buffer"].clear()
    found = [problem for of_section in problems.values() for problem in of_section]
    if found or link is None or log is None:
        raise ConfigError(found)
    return Pair(link=link, source=source, sink=sink, spool=spool, repeat_buffer=repeat_buffer, admin=admin, log=log)


@attrs.frozen(kw_only=True)
class _End:
    section: str
    role: Role
    """Which end reads it."""
    registry: PluginRegistry[Any]
    model: Any


_SOURCE = _End(section="source", role=Role.INGRESS, registry=SOURCES, model=SourceSection)
_SINK = _End(section="sink", role=Role.EGRESS, registry=SINKS, model=SinkSection)


def _read_end(end: _End, path: Path, tables: Tables, role: Role | None, problems: list[str]) -> Any:
    """The section; None when it does not exist or its type is not known. Its config is None when there are problems."""
    label = f"{path}: {end.section}"
    if end.section not in tables:
        if role is end.role:
            problems.append(f"{label}: the section [{end.section}] is missing, and the {role.value} needs it")
        return None
    table = dict(tables[end.section])
    plugin_type = table.pop("type", None)
    if plugin_type is None:
        problems.append(f"{label}.type: missing, allowed: {', '.join(end.registry.names())}")
        return None
    plugin_class = _plugin_class(end.registry, plugin_type, problems)
    if plugin_class is None:
        return None
    config = structure(plugin_class.Config, table, label=label, problems=problems)
    return end.model(type=plugin_type.candidates[0], config=config, plugin_class=plugin_class)


def _plugin_class(registry: PluginRegistry[Any], given: Given, problems: list[str]) -> Any:
    if not given.candidates:
        return None
    name, names = given.candidates[0], registry.names()
    if name not in names:
        near = suggestion(str(name), names)
        problems.append(f"{given.label}: unknown type{near}: got {name!r}, allowed: {', '.join(names)}")
        return None
    try:
        return registry.load(name)
    except ConfigError as error:
        problems += [f"{given.label}: {problem}" for problem in error.problems]
    except (ImportError, AttributeError) as error:
        problems.append(f"{given.label}: type {name!r} cannot be loaded: {error}")
    return None


def _needs_order(path: Path, sink: SinkSection) -> list[str]:
    if Carries.RECORDS not in sink.plugin_class.accepts:
        why = f"the {sink.type} sink takes byte streams"
    else:
        why = getattr(sink.config, "needs_order", "")
    return [f'{path}: link.order: {why}: got "available", allowed: "strict"'] if why else []


def _mismatch(path: Path, source: SourceSection, sink: SinkSection) -> list[str]:
    carries = source.plugin_class.carries
    # A source whose configuration decides it has this method, which sees a valid configuration only.
    carries_with = getattr(source.plugin_class, "carries_with", None)
    if carries_with is not None and source.config is not None:
        carries = carries_with(source.config)
    if carries in sink.plugin_class.accepts:
        return []
    accepted = " or ".join(sorted(kind.value for kind in sink.plugin_class.accepts))
    return [
        f"{path}: the {source.type} source carries {carries.value}, but the {sink.type} sink accepts only {accepted}"
    ]
