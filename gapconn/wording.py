"""Types and values of the configuration in words, for messages and for the reference."""

from __future__ import annotations

import difflib
import enum
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

import attrs

from gapconn.units import (
    Address,
    BitsPerSecond,
    Bytes,
    Percent,
    Seconds,
    format_bytes,
    format_percent,
    format_rate,
    format_seconds,
)

_NONE = type(None)

# Name of the type and examples of values.
_SCALARS: Mapping[Any, tuple[str, list[str]]] = {
    str: ("text", ['"text"']),
    int: ("whole number", ["10"]),
    float: ("number", ["0.5"]),
    bool: ("boolean", ["true"]),
    Path: ("path", ['"/var/spool/out"']),
    Seconds: ("duration", ['"200ms"', '"1s"', '"5 min"']),
    Bytes: ("size", ['"64 MiB"', '"64 MB"']),
    BitsPerSecond: ("rate", ['"800 kbit/s"', '"1 Gbit/s"']),
    Percent: ("share", ['"5%"', '"0.5%"']),
    Address: ("address", ['"192.0.2.1:7400"', '"host:7400"', '"[2001:db8::1]:7400"']),
}


def is_union(hint: Any) -> bool:
    """Whether a type is `A | B`."""
    return get_origin(hint) in (Union, types.UnionType)


def is_enum(hint: Any) -> bool:
    """Whether a type is an Enum."""
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def choices_of(hint: Any) -> list[Any] | None:
    """The values of a Literal or an Enum, None for other types."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [member.value for member in hint] if is_enum(hint) else None


def _described(hint: Any) -> tuple[str, list[str]]:
    """Name of a type and examples of its values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        described = _SCALARS[hint]
    elif is_union(hint):
        members = [_described(argument) for argument in arguments if argument is not _NONE]
        described = " or ".join(dict.fromkeys(name for name, _ in members)), members[0][1]
    elif choices_of(hint) is not None:
        described = "choice", []
    elif origin in (list, tuple):
        name, examples = _described(arguments[0])
        described = f"list of {name}", [f"[{example}]" for example in examples[:1]]
    elif origin is dict:
        name, examples = _described(arguments[1])
        described = f"table of {name}", [f"{{ key = {example} }}" for example in [*examples, '"value"'][:1]]
    else:
        described = "table" if isinstance(hint, type) and attrs.has(hint) else "any value", []
    return described


def type_name(hint: Any) -> str:
    """A short name of a type: `duration`, `list of text`, `choice`."""
    return _described(hint)[0]


def type_words(hint: Any) -> str:
    """What a type allows: the choices, or its name with examples."""
    if hint is bool:
        return "true or false"
    choices = choices_of(hint)
    if choices is not None:
        return ", ".join(value_text(choice) for choice in choices)
    name, examples = _described(hint)
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name} such as {', '.join(examples)}" if examples and hint is not str else name


def allowed_words(field: attrs.Attribute[Any]) -> str:
    """What a key allows: what its `option` says, else what its type does."""
    allowed = field.metadata.get("allowed")
    if allowed is None:
        return type_words(field.type)
    return allowed if isinstance(allowed, str) else ", ".join(value_text(value) for value in allowed)


def suggestion(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `names`, empty when none is near."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    # "mtu" is no close match of "mtu_bytes" by its letters, but it is what was meant.
    near += [other for other in known if name and other.startswith(name)]
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """The problem with a key that does not exist: the nearest one, or all that exist."""
    known = list(keys)
    return f"unknown key {key!r}" + (suggestion(key, known) or f", allowed: {', '.join(known)}")


def value_text(value: Any, hint: Any = None) -> str:
    """A value as it would stand in a file. The type is needed for quantities, which are plain numbers."""
    hints = get_args(hint) if is_union(hint) else (hint,)
    text = str(value)
    if Seconds in hints:
        text = f'"{format_seconds(value)}"'
    elif Bytes in hints:
        text = f'"{format_bytes(value)}"'
    elif BitsPerSecond in hints:
        text = f'"{format_rate(value)}"'
    elif Percent in hints:
        text = f'"{format_percent(value)}"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, enum.Enum):
        text = value_text(value.value)
    elif isinstance(value, str | Address | Path):
        text = f'"{value}"'
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(value_text(item) for item in value)}]"
    elif isinstance(value, dict):
        items = [f"{_key_text(key)} = {value_text(item)}" for key, item in value.items()]
        text = f"{{ {', '.join(items)} }}" if items else "{}"
    return text


def _key_text(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'


def given_text(config: Any) -> str:
    """The keys of a section that differ from a fixed default, as `key = value`, without what is secret."""
    return ", ".join(_given(config))


def _given(config: Any, before: str = "") -> Iterator[str]:
    for field in attrs.fields(attrs.resolve_types(type(config))):
        value = getattr(config, field.name)
        if value == default_of(field, config):
            continue
        if "subsection" in field.metadata:
            yield from _given(value, f"{before}{field.name}.")
        else:
            shown = '"***"' if field.metadata.get("secret") else value_text(value, field.type)
            yield f"{before}{field.name} = {shown}"


def default_of(field: attrs.Attribute[Any], instance: object) -> Any:
    """The default of a key; `instance` has the keys that it is made from. NOTHING when there is none."""
    if not isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]  # a class at run time, typed as a function
        return field.default
    factory = cast(Any, field.default)
    return factory.factory(instance) if factory.takes_self else factory.factory()
