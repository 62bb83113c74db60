"""How sources and sinks are found by name, and what each of them is given."""

from __future__ import annotations

import enum
import importlib
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

import attrs
from structlog.typing import FilteringBoundLogger

from gapconn.errors import ConfigError
from gapconn.record import first_position

T = TypeVar("T")


class Carries(enum.Enum):
    """What kind of parts the batches of a source have."""

    RECORDS = "records"
    CHUNKS = "chunks of byte streams"


@attrs.frozen(kw_only=True)
class Context:
    """What a source or sink is given beside its configuration."""

    link: str
    """Name of the link."""
    link_id: int
    epoch: int
    """The ingress session's epoch (for a source: stream names made of it never repeat); 0 for a sink."""
    log: FilteringBoundLogger
    """Bound to the link and the task. Event names are past tense: `log.warning("broker_lost", ...)`."""
    counters: Counter[str] = attrs.field(factory=Counter)
    """Counted facts by snake_case name, shown as `gapconn_source_events_total{event="..."}` (or `..._sink_...`)."""
    status: dict[str, Any] = attrs.field(factory=dict)
    """Small JSON-able facts for `/status`, kept current by the source or sink."""

    @property
    def first_position(self) -> int:
        """Where a source begins that numbers its records itself, so that no position comes in two sessions."""
        return first_position(self.epoch)

    @property
    def origin(self) -> str:
        """Of the batches of such a source: the link and the session, as nothing else says where a record is from."""
        return f"{self.link}-{self.epoch:x}"


class PluginRegistry(Generic[T]):
    """Names to classes: the built-in ones, imported when first asked for, and those of installed entry points."""

    def __init__(self, *, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self._builtin = builtin

    def names(self) -> list[str]:
        """All known names, the built-in ones first."""
        return [*self._builtin, *(e.name for e in entry_points(group=self.group) if e.name not in self._builtin)]

    def load(self, name: str) -> T:
        """The class of that name.

        Raises:
            ConfigError: no such name, or its module cannot be imported.
        """
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return cast(T, getattr(importlib.import_module(module), attribute))
        for entry in entry_points(group=self.group, name=name):
            try:
                return cast(T, entry.load())
            except ImportError as error:
                raise ConfigError([f"type {name!r}: cannot be imported: {error}"]) from error
        raise ConfigError([f"type {name!r} is not known; allowed: {', '.join(self.names())}"])
