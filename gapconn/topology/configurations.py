"""The pair files of processes that would run in containers: read as the process would, with its environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from gapconn.config import Pair, Role
from gapconn.errors import ConfigError
from gapconn.pair_file import load_pair
from gapconn.topology.model import Fault

HIDDEN = "0"
"""In place of an environment variable whose value is a secret of the cluster."""


@attrs.frozen(kw_only=True)
class Configuration:
    """What a pair file says to a process."""

    pair: Pair | None
    faults: list[Fault]


def read_configuration(path: Path, name: str, environ: Mapping[str, str], role: Role) -> Configuration:
    """Read the pair file at `path`, which is called `name` in messages."""
    try:
        return Configuration(pair=load_pair(path, environ, role=role), faults=[])
    except ConfigError as error:
        faults = []
        for problem in error.problems:
            key, _, what = problem.removeprefix(f"{path}: ").partition(": ")
            remedy = f"see gapconn check --role {role.value}"
            faults.append(Fault(file=name, key=key, what=what or "wrong", remedy=remedy))
        return Configuration(pair=None, faults=faults)


@contextmanager
def as_file(text: str) -> Iterator[Path]:
    """A pair file that is a text of something else."""
    with tempfile.TemporaryDirectory(prefix="gapconn-check-") as directory:
        path = Path(directory) / "pair.toml"
        path.write_text(text, encoding="utf-8")
        yield path
