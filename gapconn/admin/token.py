"""The bearer token that whoever changes something at an admin endpoint must show: one line in a private file."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Final

from gapconn.errors import ConfigError
from gapconn.private_file import read_private

TOKEN_CHARACTERS_MIN: Final = 16
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What RFC 6750 lets a bearer token have, and nothing that would need quoting."""


def load_token(path: Path) -> str:
    """The token in the file at `path`.

    Raises:
        ConfigError: it cannot be read, others can read it, or it is no token. The token is not in the message.
    """
    text = read_private(path, "token file", remedy=f"make one by: (umask 077; openssl rand -hex 32 > {path})").strip()
    if len(text) < TOKEN_CHARACTERS_MIN or _TOKEN.fullmatch(text) is None:
        raise ConfigError(
            [
                f"{path}: not a token: one line of at least {TOKEN_CHARACTERS_MIN} letters, digits and . _ ~ + / = -,"
                f" such as openssl rand -hex 32 gives"
            ]
        )
    return text


def shows(authorization: str | None, token: str) -> bool:
    """Whether the value of an `Authorization` header shows this token."""
    scheme, _, shown = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())
