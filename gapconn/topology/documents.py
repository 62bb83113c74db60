"""YAML files, read with the safe loader: a document is never more than plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gapconn.errors import ConfigError

_Loader: Any = type("_Loader", (yaml.SafeLoader,), {})
"""The safe loader, with the two tags by which a Compose file replaces what it would otherwise merge."""


def _plain(loader: Any, node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!reset", lambda *_: None)
_Loader.add_constructor("!override", _plain)


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file that are not empty.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        return [document for document in yaml.load_all(path.read_text(encoding="utf-8"), _Loader) if document]
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
