"""The configuration reference, rendered from the models: `python -m gapconn.reference > docs/configuration.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import attrs

from gapconn.config import Admin, Fec, Link, Log, RepeatBuffer, Security, Spool
from gapconn.plugins import Carries, PluginRegistry
from gapconn.sinks import SINKS
from gapconn.sources import SOURCES
from gapconn.wording import allowed_words, choices_of, default_of, type_name, value_text

_INTRODUCTION = """\
<!-- Rendered from the models by `python -m gapconn.reference`; a test compares. Change the models, not this file. -->

# Configuration

One TOML file describes a link pair and is read by both ends: `gapconn ingress pair.toml` on the source side reads
`[link]`, `[source]` and `[repeat_buffer]`, `gapconn egress pair.toml` on the destination side reads `[link]`, `[sink]`
and `[spool]`. There is an [example](examples/) for every source and sink. `gapconn check pair.toml` says everything
that is wrong with a file at once; given several files it also says which pairs cannot run side by side. Its options:

- `--role ingress` or `--role egress` reads the files as this end does: the other end's section, its plugins and its
  secrets need not exist here.
- `--separate-hosts`: every end has a host or container of its own, so that ports and directories may be the same.
- `--json` prints one JSON object: `ok`, `problems`, and each pair with all its values (secrets hidden).

Its exit code is 0, or 2 when there is a problem.

## The environment

- `GAPCONN_<SECTION>_<KEY>` overrides a key of the file: `GAPCONN_LINK_MTU_BYTES=9000`,
  `GAPCONN_SOURCE_TOPICS='["a", "b"]'`, `GAPCONN_SINK_CLIENT='{ "security.protocol" = "SSL" }'`; for a
  table inside a section `GAPCONN_LINK_FEC_REPAIR=10%`. The text is read as a TOML value where it is one, else as it
  stands. A section that the file does not have begins to exist by it. An unknown variable is an error, except
  `GAPCONN_TEST_...` and those that Kubernetes sets for a Service.
- `${NAME}` in a string of the file is replaced by the environment variable `NAME`; `$${` stands for `${`. A variable
  that is not set is an error at the end that reads the section: the sink's password need not exist on the source side.

## Quantities

| type | written as |
| --- | --- |
| duration | `"200ms"`, `"1s"`, `"5 min"`, `"1h"`, or seconds as a number |
| size | `"64 MiB"` (binary), `"64 MB"` (decimal), or bytes as a number |
| rate | `"800 kbit/s"`, `"1 Gbit/s"` (decimal), or bits per second as a number; 0 or `"unlimited"` is no limit |
| share | `"5%"`, `"0.5%"`, or 0 |
| address | `"host:port"`, `"192.0.2.1:port"`, `"[2001:db8::1]:port"` |
"""


def render() -> str:
    """The whole reference as Markdown."""
    parts = [_INTRODUCTION]
    sections = (("link", Link), ("link.fec", Fec), ("link.security", Security), ("admin", Admin), ("log", Log))
    for name, model in sections:
        parts += _section(name, model)
    parts.append(
        "## `[source]`\n\nWhat the ingress reads. `type` says which kind it is; the other keys depend on it.\n"
    )
    parts += _plugins(SOURCES, "source")
    parts.append("## `[sink]`\n\nWhat the egress writes. `type` says which kind it is; the other keys depend on it.\n")
    parts += _plugins(SINKS, "sink")
    parts += _section("spool", Spool)
    parts += _section("repeat_buffer", RepeatBuffer)
    return "\n".join(parts)


def _section(name: str, model: type[Any]) -> Iterator[str]:
    yield "\n".join([f"## `[{name}]`", "", _after_colon(model), "", *_table(model), ""])


def _plugins(registry: PluginRegistry[Any], section: str) -> Iterator[str]:
    for name in registry.names():
        plugin = registry.load(name)
        if not plugin.__module__.startswith("gapconn."):
            continue  # a third party's, which happens to be installed where this is rendered
        if section == "sink":
            kinds = "Accepts " + " and ".join(sorted(kind.value for kind in plugin.accepts))
        elif hasattr(plugin, "carries_with"):
            kinds = "Carries " + " or ".join(sorted(kind.value for kind in Carries)) + ", as its keys say"
        else:
            kinds = f"Carries {plugin.carries.value}"
        lines = [
            f'### `[{section}]` `type = "{name}"`',
            "",
            inspect.cleandoc(plugin.__doc__ or "").partition("\n\n")[0],
            f"{kinds}.",
            "",
            *(_table(plugin.Config) if attrs.fields(plugin.Config) else ["It has no further keys."]),
            "",
        ]
        yield "\n".join(lines)


def _after_colon(model: type[Any]) -> str:
    """The model's docstring without the section's name, which the heading says."""
    text = inspect.cleandoc(model.__doc__ or "").partition(": ")[2]
    return text[:1].upper() + text[1:]


def _table(model: type[Any]) -> Iterator[str]:
    yield "| key | type | default | allowed | |"
    yield "| --- | --- | --- | --- | --- |"
    for field in attrs.fields(attrs.resolve_types(model)):
        if "subsection" in field.metadata:
            continue  # has a table of its own
        kind = type_name(field.type) + (", secret" if field.metadata["secret"] else "")
        cells = [f"`{field.name}`", kind, _default(field), _allowed(field), field.metadata["help"]]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "**required**"
    if field.default is None:
        return "none"
    # A default that depends on other things says in its docstring what it is.
    factory = getattr(field.default, "factory", None)
    if inspect.isfunction(factory) and factory.__doc__:
        return inspect.cleandoc(factory.__doc__)
    return f"`{value_text(default_of(field, None), field.type)}`"


def _allowed(field: attrs.Attribute[Any]) -> str:
    if field.metadata["allowed"] is None and choices_of(field.type) is None:
        return ""
    words = allowed_words(field)
    return words if "`" in words or choices_of(field.type) is None else f"`{words}`"


if __name__ == "__main__":
    sys.stdout.write(render())
