"""The configuration of a pair: attrs models, read from one TOML file by both ends."""

from __future__ import annotations

from typing import Any

import attrs


def option(
    *,
    help: str,  # noqa: A002
    default: Any = attrs.NOTHING,
    factory: Any = None,
    allowed: Any = None,
    validator: Any = None,
    secret: bool = False,
) -> Any:
    """A key of the configuration: an attrs field that also documents itself.

    Args:
        help: One sentence for the reference in the documentation and for error messages.
        default: The value when the key is absent; without one (and without `factory`) the key is required.
        factory: Makes the default, for mutable ones.
        allowed: The allowed values in words or as a tuple, when the type alone does not say it.
        validator: An attrs validator (or a list of them) that raises `ValueError` saying what is allowed.
        secret: The value is never shown in logs or on the status page.
    """
    metadata = {"help": help, "allowed": allowed, "secret": secret}
    if factory is not None:
        return attrs.field(factory=factory, validator=validator, metadata=metadata)
    return attrs.field(default=default, validator=validator, metadata=metadata)
