"""What `gapconn check` was given: pair files, directories of them, Compose files, manifests; all checked together."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from gapconn.check import Report, check
from gapconn.config import Role
from gapconn.errors import ConfigError
from gapconn.topology.compose import is_compose, read_compose
from gapconn.topology.documents import read_documents
from gapconn.topology.kubernetes import is_manifest, read_kubernetes
from gapconn.topology.lint import lint
from gapconn.topology.model import Fault, Topology
from gapconn.topology.pairs import kafka_conflicts, kafka_doubts

_YAML = (".yaml", ".yml")


def check_all(
    paths: Iterable[Path], environ: Mapping[str, str], *, role: Role | None = None, separate_hosts: bool = False
) -> Report:
    """Check everything that was given; see `gapconn.check.check` for pair files.

    Args:
        paths: Pair files, directories of them, and YAML files.
        environ: The environment, for pair files and for variables in Compose files.
        role: Read the pair files as this end.
        separate_hosts: The pair files are of ends that each have a host of their own.
    """
    files: list[Path] = []
    topologies: list[Topology] = []
    problems: list[str] = []
    manifests: dict[Path, list[Any]] = {}
    for path in paths:
        try:
            if path.is_dir():
                files += _pair_files(path)
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
        ends=[f"{each.at} in {each.file}: {each.words}" for topology in topologies for each in topology.processes],
    )


def _pair_files(directory: Path) -> list[Path]:
    """The pair files in a directory. Others of the same kind, those of other commands, have no section [link]."""
    found = [path for path in sorted(directory.glob("*.toml")) if _may_be_a_pair(path)]
    if not found:
        raise ConfigError([f"{directory}: no pair file: no *.toml with a section [link]"])
    return found


def _may_be_a_pair(path: Path) -> bool:
    try:
        return "link" in tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return True  # what is wrong with it, is said when it is read


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
