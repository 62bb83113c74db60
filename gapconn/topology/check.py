"""What `gapconn check` was given: pair files, directories of them, Compose files, manifests; all checked together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import attrs

from gapconn.check import Report, check
from gapconn.config import Role
from gapconn.dedup.config import load_dedup
from gapconn.errors import ConfigError
from gapconn.monitor.config import load_monitor
from gapconn.tables import DEDUP, ENVIRONMENT_PREFIX, MONITOR, PAIR, Kind, kinds_of
from gapconn.topology.compose import is_compose, read_compose
from gapconn.topology.documents import read_documents
from gapconn.topology.kubernetes import is_manifest, read_kubernetes
from gapconn.topology.lint import lint
from gapconn.topology.model import Fault, Topology
from gapconn.topology.pairs import kafka_conflicts, kafka_doubts

_YAML = (".yaml", ".yml")
_LOADERS: Mapping[Kind, Callable[[Path, Mapping[str, str]], object]] = {
    MONITOR: partial(load_monitor, tokens=False),
    DEDUP: load_dedup,
}


def check_all(
    paths: Iterable[Path], environ: Mapping[str, str], *, role: Role | None = None, separate_hosts: bool = False
) -> Report:
    """Check everything that was given; see `gapconn.check.check` for pair files.

    In a directory there may also be the files of a monitor or a deduplicator: they are checked on their own.

    Args:
        paths: Pair files, directories of them, and YAML files.
        environ: The environment, for pair files and for variables in Compose files.
        role: Read the pair files as this end.
        separate_hosts: The pair files are of ends that each have a host of their own.
    """
    files: list[Path] = []
    others: list[str] = []
    left_out: list[str] = []
    topologies: list[Topology] = []
    problems: list[str] = []
    manifests: dict[Path, list[Any]] = {}
    for path in paths:
        try:
            if path.is_dir():
                found = _found_in(path, environ, role)
                files += found.pairs
                others += found.others
                left_out += found.left_out
                problems += found.problems
            elif path.suffix.lower() in _YAML:
                _read(path, environ, topologies, manifests)
            else:
                files.append(path)
        except ConfigError as error:
            problems += error.problems
    if manifests:
        documents = [document for of_file in manifests.values() for document in of_file]
        topologies.append(read_kubernetes(", ".join(map(str, manifests)), documents))
    report = check(files, environ, role=role, separate_hosts=separate_hosts)
    faults = _of_pairs(report) + lint(_together(topologies))
    return Report(
        pairs=report.pairs,
        problems=[*problems, *report.problems, *(str(each) for each in faults if not each.warning)],
        warnings=[str(each) for each in faults if each.warning],
        others=others,
        left_out=left_out,
        ends=[f"{each.at} in {each.file}: {each.words}" for topology in topologies for each in topology.processes],
    )


@attrs.define
class _Directory:
    """What `*.toml` there is in one."""

    pairs: list[Path] = attrs.field(factory=list)
    others: list[str] = attrs.field(factory=list)
    left_out: list[str] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)


def _found_in(directory: Path, environ: Mapping[str, str], role: Role | None) -> _Directory:
    found = _Directory()
    # What overrides a file is for one process: here for those of the pairs.
    plain = {name: value for name, value in environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    for path in sorted(directory.glob("*.toml")):
        try:
            kind = next(iter(kinds_of(path)), None)
            if kind is PAIR:
                found.pairs.append(path)
            elif kind is None:
                found.left_out.append(f"{path}: not that of a pair, as it has no section [link]")
            elif role is not None:
                found.left_out.append(f"{path}: that of {kind.words}, which no {role.value} reads: {kind.checked_by}")
            else:
                _LOADERS[kind](path, plain)
                found.others.append(f"{path} (of {kind.words})")
        except ConfigError as error:
            found.problems += error.problems
    if not (found.pairs or found.others or found.problems):
        found.problems.append(f"{directory}: no pair file: no *.toml with a section [link]")
    return found


def _read(path: Path, environ: Mapping[str, str], topologies: list[Topology], manifests: dict[Path, list[Any]]) -> None:
    documents = read_documents(path)
    if len(documents) == 1 and is_compose(documents[0]):
        topologies.append(read_compose(path, environ))
    elif any(map(is_manifest, documents)):
        manifests[path] = documents
    else:
        raise ConfigError(
            [f"{path}: neither a Compose file (no section services) nor Kubernetes manifests (no apiVersion and kind)"]
        )


def _together(topologies: list[Topology]) -> Topology:
    return Topology(
        processes=[each for topology in topologies for each in topology.processes],
        publications=[each for topology in topologies for each in topology.publications],
        faults=[each for topology in topologies for each in topology.faults],
    )


def _of_pairs(report: Report) -> list[Fault]:
    faults = []
    for (path, pair), (other_path, other) in combinations(report.pairs, 2):
        both = f"{path} and {other_path}"
        faults += [
            Fault(file=both, key="source, sink", what=what, remedy=remedy, warning=warning)
            for found, warning in ((kafka_conflicts, False), (kafka_doubts, True))
            for what, remedy in found(pair, other)
        ]
    return faults
