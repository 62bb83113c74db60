"""The tables of a configuration file, with what the environment puts into and over them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from gapconn.errors import ConfigError
from gapconn.structuring import Given
from gapconn.wording import suggestion

ENVIRONMENT_PREFIX = "GAPCONN_"

Tables: TypeAlias = dict[str, dict[str, Given]]
"""Section, key, value."""

Problems: TypeAlias = dict[str, list[str]]
"""By section; what belongs to none is under the empty name."""


@attrs.frozen(kw_only=True)
class Kind:
    """What a file configures."""

    words: str
    told_by: frozenset[str]
    """Sections that only such a file has."""
    checked_by: str
    """The command that says what is wrong with one."""


PAIR = Kind(words="a pair", told_by=frozenset({"link"}), checked_by="gapconn check")
MONITOR = Kind(words="a monitor", told_by=frozenset({"monitor", "pair"}), checked_by="gapconn monitor --check")
DEDUP = Kind(words="a deduplicator", told_by=frozenset({"dedup", "input"}), checked_by="gapconn dedup --check")
KINDS = (PAIR, MONITOR, DEDUP)

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")

# Kubernetes sets such variables in every container when a Service is called "gapconn" or "gapconn-something".
_OF_A_SERVICE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")


def read_tables(
    path: Path,
    environ: Mapping[str, str],
    sections: tuple[str, ...],
    problems: Problems,
    *,
    lists: tuple[str, ...] = (),
) -> Tables:
    """The sections of the TOML file at `path`, with `${NAME}` replaced, and overridden by `GAPCONN_<SECTION>_<KEY>`.

    Args:
        path: The file.
        environ: The environment.
        sections: Those that exist. Their names have no underscore, so that a variable's name has one meaning.
        problems: Gets what is wrong.
        lists: Sections that may stand several times, as `[[name]]`. Their tables are called `name[0]`, `name[1]`, and
            so on; no variable of the environment overrides them.

    Raises:
        ConfigError: the file cannot be read at all, or is of another kind.
    """
    tables = _tables_of_file(path, environ, sections, lists, problems)
    _override(tables, environ, sections, problems)
    return tables


def kinds_of(path: Path) -> list[Kind]:
    """Which kinds of file this one looks like; empty if its sections do not tell.

    Raises:
        ConfigError: it cannot be read at all.
    """
    return _kinds(_read(path))


def _kinds(sections: Iterable[str]) -> list[Kind]:
    return [kind for kind in KINDS if not kind.told_by.isdisjoint(sections)]


def _read(path: Path) -> dict[str, Any]:
    try:
        # The byte order mark is what Windows editors begin a file with.
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: a directory, not a file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _tables_of_file(
    path: Path, environ: Mapping[str, str], sections: tuple[str, ...], lists: tuple[str, ...], problems: Problems
) -> Tables:
    tables: Tables = {}
    known = (*sections, *lists)
    content = _read(path)
    kinds = _kinds(content)
    if kinds and not any(kind in _kinds(known) for kind in kinds):
        words, checked_by = kinds[0].words, kinds[0].checked_by
        raise ConfigError([f"{path}: this is the configuration of {words}: check it by {checked_by}"])
    for section, table in content.items():
        if section not in known:
            what = "unknown section" if isinstance(table, dict) else "a key outside of a section:"
            names = ", ".join(known)
            problems[""].append(f"{path}: {what} {section!r}{suggestion(section, known)}, allowed: {names}")
        elif section in lists:
            if not isinstance(table, list) or not all(isinstance(each, dict) for each in table):
                problems[section].append(f"{path}: {section}: not a list of sections: write it as [[{section}]]")
                continue
            for number, each in enumerate(table):
                name = f"{section}[{number}]"
                tables[name] = _table_in_file(f"{path}: {name}", each, environ, problems[section])
        elif not isinstance(table, dict):
            problems[section].append(f"{path}: {section}: not a section: write it as [{section}]")
            tables[section] = {}
        else:
            tables[section] = _table_in_file(f"{path}: {section}", table, environ, problems[section])
    return tables


def _table_in_file(
    label: str, table: Mapping[str, Any], environ: Mapping[str, str], problems: list[str]
) -> dict[str, Given]:
    return {key: _given_in_file(f"{label}.{key}", value, environ, problems) for key, value in table.items()}


def _given_in_file(label: str, value: Any, environ: Mapping[str, str], problems: list[str]) -> Given:
    missing: list[str] = []
    substituted = _substituted(value, environ, missing)
    problems += [f"{label}: the environment variable {name!r} is not set, but ${{{name}}} needs it" for name in missing]
    if missing:
        return Given(label=label, candidates=(), shown=value)
    if isinstance(value, str) and substituted != value:
        # A number can only stand in a variable as text.
        return Given(label=label, candidates=(substituted, _toml_value(substituted)), shown=value)
    return Given(label=label, candidates=(substituted,), shown=value)


def _substituted(value: Any, environ: Mapping[str, str], missing: list[str]) -> Any:
    """`value` with every `${NAME}` in its strings replaced; names without a variable are added to `missing`."""

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "${"
        if name not in environ:
            missing.append(name)
        return environ.get(name, "")

    match value:
        case str():
            return _REFERENCE.sub(replace, value)
        case list():
            return [_substituted(item, environ, missing) for item in value]
        case dict():
            return {key: _substituted(item, environ, missing) for key, item in value.items()}
    return value


def _toml_value(text: str) -> Any:
    """What `text` is as a TOML value; `text` itself if it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


def _override(tables: Tables, environ: Mapping[str, str], sections: Iterable[str], problems: Problems) -> None:
    """Put the variables `GAPCONN_<SECTION>_<KEY>` over the keys of the file."""
    for variable, text in sorted(environ.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name.startswith("TEST_") or _is_of_a_service(name, text):
            continue
        section, _, key = name.partition("_")
        label = f"environment: {variable}"
        if section.lower() in sections and key:
            # Text that happens to be a TOML value (a password of digits) is meant as text where only text is allowed.
            given = Given(label=label, candidates=(_toml_value(text), text), shown=text, of_environment=True)
            tables.setdefault(section.lower(), {})[key.lower()] = given
        else:
            near = suggestion(section.lower(), sections)
            names = ", ".join(f"{ENVIRONMENT_PREFIX}{known.upper()}_<KEY>" for known in sections)
            problems[""].append(f"{label}: unknown variable{near}, allowed: {names}")


def _is_of_a_service(name: str, text: str) -> bool:
    if _OF_A_SERVICE.fullmatch(name):
        return True
    return (name == "PORT" or name.endswith("_PORT")) and _SERVICE_URL.fullmatch(text) is not None
