"""The files that commands are given, and the pair that one describes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gapconn.commands.failures import exit_on_wrong_configuration

if TYPE_CHECKING:
    from gapconn.config import Pair

PATH: Final = click.Path(path_type=Path)
FILE: Final = click.argument("file", type=PATH)


def pair_of(file: Path, role: str) -> Pair:
    """The configuration as this end reads it; exits when it is wrong."""
    from gapconn.config import Role
    from gapconn.pair_file import load_pair

    with exit_on_wrong_configuration():
        return load_pair(file, os.environ, role=Role(role))
