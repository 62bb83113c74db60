"""From the tables of a file to attrs classes, with every problem found at once and named.

Knows nothing of the models: what it needs of a key is in the metadata that `gapconn.config.option` gives its field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast, get_origin

import attrs
from cattrs import AttributeValidationNote, Converter
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory, mapping_structure_factory
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn
from cattrs.strategies import configure_union_passthrough

from gapconn.units import (
    Address,
    BitsPerSecond,
    Bytes,
    Percent,
    Seconds,
    parse_address,
    parse_bytes,
    parse_percent,
    parse_rate,
    parse_seconds,
)
from gapconn.wording import allowed_words, choices_of, default_of, is_enum, suggestion, unknown_key, value_text

T = TypeVar("T", bound=attrs.AttrsInstance)

_SHOWN_CHARACTERS_MAX = 80


@attrs.frozen(kw_only=True)
class Given:
    """The value of one key, as somebody gave it."""

    label: str
    """Where it stands: `pair.toml: link.rate`, or `environment: GAPCONN_LINK_RATE`."""
    candidates: tuple[Any, ...]
    """What it may mean; the first that has the right type counts. None at all: its problem was already reported."""
    shown: Any
    """The value for messages, as it was written at that place."""
    of_environment: bool = False
    """Whether a variable of the environment gave it."""


def structure(cls: type[T], table: Mapping[str, Given], *, label: str, problems: list[str]) -> T | None:
    """An instance of the attrs class `cls`, or None after adding everything that is wrong to `problems`.

    `label` names the section, for keys that are missing.
    """
    fields = {field.name: field for field in attrs.fields(attrs.resolve_types(cls)) if field.init}
    values: dict[str, Any] = {}
    found: list[str] = []
    for name, field in fields.items():
        if "subsection" in field.metadata:
            table, inner = _apart(table, name, found)
            values[name] = structure(field.metadata["subsection"], inner, label=f"{label}.{name}", problems=found)
    renamed: Mapping[str, str] = getattr(cls, "RENAMED", {})
    found[:0] = [
        f"{given.label}: is now called {renamed[key]}"
        if key in renamed
        else f"{given.label}: {unknown_key(key, fields)}"
        for key, given in table.items()
        if key not in fields
    ]
    for name, field in fields.items():
        if name in values:
            continue
        if name in table:
            _read_value(table[name], field, values, found)
        elif field.default is attrs.NOTHING:
            found.append(f"{label}.{name}: missing, allowed: {_plain(allowed_words(field))}")
    found += _validation_problems(cls, fields, values, table, label)
    problems += found
    if found or any(not given.candidates for given in table.values()):
        return None
    return cls(**values)


def _apart(table: Mapping[str, Given], name: str, found: list[str]) -> tuple[dict[str, Given], dict[str, Given]]:
    """A section without its subsection `name`, and that: its table, and over it `GAPCONN_<SECTION>_<NAME>_<KEY>`."""
    outer, inner = dict(table), {}
    given = outer.pop(name, None)
    if given is not None:
        tables = [candidate for candidate in given.candidates if isinstance(candidate, dict)]
        if given.candidates and not tables:
            found.append(f"{given.label}: not a table: got {_shown(given.shown)}")
        for key, value in (tables[0] if tables else {}).items():
            inner[key] = Given(label=f"{given.label}.{key}", candidates=(value,), shown=value)
    for key, value in table.items():
        if key.startswith(f"{name}_") and value.of_environment:
            inner[key.removeprefix(f"{name}_")] = outer.pop(key)
    return outer, inner


def _read_value(given: Given, field: attrs.Attribute[Any], values: dict[str, Any], found: list[str]) -> None:
    first: Exception | None = None
    for candidate in given.candidates:
        try:
            values[field.name] = _CONVERTER.structure(candidate, cast(Any, field.type))
        except Exception as error:  # the hook of a plugin's own type may raise anything
            first = first or error
        else:
            return
    if first is not None:
        for path, reason in _reasons(first):
            found.append(_sentence(given.label + path, reason, field, given.candidates, _shown(given.shown)))


def _validation_problems(
    cls: type[T],
    fields: Mapping[str, attrs.Attribute[Any]],
    values: Mapping[str, Any],
    table: Mapping[str, Given],
    label: str,
) -> Iterator[str]:
    """What the validators say. They may compare a key with others, so they see an instance of what could be read."""
    partial = object.__new__(cls)
    for name, field in fields.items():
        if name in values:
            object.__setattr__(partial, name, values[name])
        elif name not in table and field.default is not attrs.NOTHING:
            with suppress(AttributeError):  # made from a key whose problem is already known
                object.__setattr__(partial, name, default_of(field, partial))
    for name, field in fields.items():
        if field.validator is None or not hasattr(partial, name):
            continue
        value = getattr(partial, name)
        try:
            field.validator(partial, field, value)
        except AttributeError:
            continue  # compares with a key whose problem is already known
        except (ValueError, TypeError) as error:
            if name in table:
                place, shown = table[name].label, _shown(table[name].shown)
            else:
                place, shown = f"{label}.{name}", f"the default {value_text(value, field.type)}"
            yield _sentence(place, _validator_words(error, field, value), field, value, shown)
    check_whole = getattr(partial, "__attrs_post_init__", None)
    if check_whole is not None:
        try:
            check_whole()
        except AttributeError:
            return
        except (ValueError, TypeError) as error:
            yield f"{label}: {error}"


def unstructure(value: Any) -> Any:
    """A value of a key as JSON has it."""
    return _CONVERTER.unstructure(value)


# Messages


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."


def _sentence(label: str, reason: str, field: attrs.Attribute[Any], given: Any, shown: str) -> str:
    if field.metadata.get("secret"):
        if any(text and text in reason for text in _texts(given)):
            reason = "not accepted"
        shown = "a secret that is not shown"
    return f"{label}: {reason}: got {shown}, allowed: {_plain(allowed_words(field))}"


def _texts(value: Any) -> Iterator[str]:
    """Every value inside of a value, as text."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


_COMPARISONS: Mapping[str, str] = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_BOUND = re.compile(r"must be ([<>]=?) (\d+(?:\.\d+)?)")


def _validator_words(error: ValueError | TypeError, field: attrs.Attribute[Any], value: Any) -> str:
    """The reason in the message of a validator; those of attrs have the name in front and the value behind."""
    message = str(error.args[0]) if error.args else "not allowed"
    message = message.removeprefix(f"{field.name!r} ").removesuffix(f": {value}")
    bound = _BOUND.fullmatch(message)
    if bound is None:
        return message
    comparison, number = bound.groups()
    limit = value_text(float(number) if "." in number else int(number), field.type).strip('"')
    return f"must be {_COMPARISONS[comparison]} {limit}"


def _reasons(error: BaseException, path: str = "") -> Iterator[tuple[str, str]]:
    """Where below the value (`.key`, `[index]`), and what was wrong."""
    if isinstance(error, ClassValidationError | IterableValidationError):
        noted, plain = error.group_exceptions()
        for inner, note in noted:
            if isinstance(note, AttributeValidationNote):
                step = f".{note.name}"
            else:
                step = f".{note.index}" if isinstance(note.index, str) else f"[{note.index}]"
            yield from _reasons(inner, path + step)
        for inner in plain:
            yield from _reasons(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        names = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            yield path, unknown_key(key, names)
    elif isinstance(error, KeyError):
        yield path, "missing"
    elif isinstance(error, TypeError):  # names Python's types, which are none of the reader's business
        yield path, "of the wrong type"
    else:
        yield path, str(error.args[0]) if error.args else type(error).__name__


# Values


def _structure_text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text (in quotes)")
    return value


def _structure_int(value: Any, _: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("not a whole number")
    return value


def _structure_float(value: Any, _: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("not a number")
    return float(value)


def _structure_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _structure_choice(value: Any, hint: Any) -> Any:
    choices = choices_of(hint) or []
    for choice in choices:
        if choice == value and type(choice) is type(value):
            return hint(choice) if is_enum(hint) else choice
    raise ValueError(f"not one of the choices{suggestion(str(value), map(str, choices))}")


def _quantity(parse: Callable[[object], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, _: parse(value)


def _shaped(shape: type, words: str, factory: Callable[..., Any]) -> Callable[[Any, Converter], Any]:
    """A hook factory that looks at the shape first: cattrs makes a list of letters of a string."""

    def make_hook(hint: Any, converter: Converter) -> Any:
        structure = factory(hint, converter)

        def hook(value: Any, hint: Any) -> Any:
            if not isinstance(value, shape):
                raise ValueError(words)
            return structure(value, hint)

        return hook

    return make_hook


def _origin_is(origin: type) -> Callable[[Any], bool]:
    return lambda hint: get_origin(hint) is origin


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    configure_union_passthrough(str | bool | int | float | None, converter)
    converter.register_structure_hook_factory(_origin_is(list), _shaped(list, "not a list", list_structure_factory))
    converter.register_structure_hook_factory(
        _origin_is(tuple), _shaped(list, "not a list", homogenous_tuple_structure_factory)
    )
    converter.register_structure_hook_factory(_origin_is(dict), _shaped(dict, "not a table", mapping_structure_factory))
    converter.register_structure_hook_factory(attrs.has, _shaped(dict, "not a table", make_dict_structure_fn))
    converter.register_structure_hook_func(lambda hint: choices_of(hint) is not None, _structure_choice)
    for scalar, hook in (
        (str, _structure_text),
        (int, _structure_int),
        (float, _structure_float),
        (bool, _structure_bool),
        (Seconds, _quantity(parse_seconds)),
        (Bytes, _quantity(parse_bytes)),
        (BitsPerSecond, _quantity(parse_rate)),
        (Percent, _quantity(parse_percent)),
        (Address, _quantity(parse_address)),
    ):
        converter.register_structure_hook(scalar, hook)
    converter.register_unstructure_hook(Address, str)
    return converter


_CONVERTER = _make_converter()
