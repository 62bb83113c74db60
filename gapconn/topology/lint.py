"""The rules that hold for what runs, whatever runs it: an ingress has exactly one egress, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from gapconn.check import host_conflicts, network_conflicts
from gapconn.config import Pair, Role
from gapconn.topology.model import Fault, Process, Publication, Topology
from gapconn.topology.pairs import kafka_conflicts, kafka_doubts
from gapconn.units import Address


def lint(topology: Topology) -> list[Fault]:
    """Everything that is wrong with it, by its own rules and by those here; each once."""
    processes = topology.processes
    faults = [
        *topology.faults,
        *_twice(processes),
        *_confused(processes),
        *_on_one_host(processes),
        *_state(processes),
        *published_twice(topology.publications),
        *_unpaired(processes),
    ]
    return list(dict.fromkeys(faults))


def _twice(processes: list[Process]) -> Iterator[Fault]:
    """One end of one pair, run by two."""
    for one, other in combinations(processes, 2):
        if one.role is other.role and one.configuration == other.configuration:
            rule = "every egress has exactly one ingress" if one.role is Role.INGRESS else "an ingress has one egress"
            yield Fault(
                file=other.file,
                key=other.at,
                what=f"runs {other.words} with {other.configuration}, and so does {_place(one, other)}: {rule}",
                remedy="remove one of them, or give it a pair file of its own",
            )


def _confused(processes: list[Process]) -> Iterator[Fault]:
    """Two pairs that the network, or Kafka, would mix up."""
    for one, other in combinations(_by_configuration(processes), 2):
        assert one.pair is not None
        assert other.pair is not None
        both = f"{one.configuration} and {other.configuration}"
        for problem in network_conflicts(one.pair, other.pair):
            yield Fault(
                file=both,
                key="link",
                what=problem,
                remedy="a pair has a link.name, link.id and link.address that no other pair has",
            )
        for what, remedy in kafka_conflicts(*_whole(one, processes, other)):
            yield Fault(file=both, key="source, sink", what=what, remedy=remedy)
        for what, remedy in kafka_doubts(*_whole(one, processes, other)):
            yield Fault(file=both, key="source, sink", what=what, remedy=remedy, warning=True)


def _by_configuration(processes: list[Process]) -> list[Process]:
    """One process for each pair file that is known."""
    found: dict[str, Process] = {}
    for each in processes:
        if each.pair is not None:
            found.setdefault(each.configuration, each)
    return list(found.values())


def _whole(one: Process, processes: list[Process], other: Process) -> tuple[Pair, Pair]:
    """The pairs of two configurations, with both ends as far as they run here."""
    return _both_ends(one, processes), _both_ends(other, processes)


def _both_ends(one: Process, processes: list[Process]) -> Pair:
    pairs = [each.pair for each in processes if each.configuration == one.configuration and each.pair is not None]
    return Pair(
        link=pairs[0].link,
        source=next((pair.source for pair in pairs if pair.source is not None), None),
        sink=next((pair.sink for pair in pairs if pair.sink is not None), None),
    )


def _on_one_host(processes: list[Process]) -> Iterator[Fault]:
    """What is unique on a host, for those that share one."""
    for one, other in combinations(processes, 2):
        if one.host != other.host or one.pair is None or other.pair is None:
            continue
        if one.role is other.role is Role.EGRESS and _overlap(one.pair.link.listen, other.pair.link.listen):
            yield Fault(
                file=other.file,
                key=other.at,
                what=f"listens on {other.pair.link.listen}, and so does {_place(one, other)} on the same host",
                remedy="give one of them a link.bind or link.address of its own",
            )
        for problem in host_conflicts(one.pair, other.pair, egresses=False):
            yield Fault(
                file=other.file,
                key=other.at,
                what=f"shares a host with {_place(one, other)}, and {problem}",
                remedy="or separate them",
            )


def _state(processes: list[Process]) -> Iterator[Fault]:
    for one, other in combinations(processes, 2):
        if not one.state or one.state != other.state or one.pair is None or other.pair is None:
            continue
        if one.role is other.role and one.pair.link.name == other.pair.link.name:
            yield Fault(
                file=other.file,
                key=other.at,
                what=f"keeps the state of {other.words} in {other.state}, and so does {_place(one, other)}",
                remedy="give one of them a volume or a link.state_directory of its own",
            )


def published_twice(publications: Iterable[Publication]) -> Iterator[Fault]:
    """Ports of a host that lead to two."""
    for one, other in combinations(publications, 2):
        same = (one.port, one.protocol, one.what) == (other.port, other.protocol, other.what)
        wildcard = {one.address, other.address} & {"", "0.0.0.0", "::"}
        if same and (wildcard or one.address == other.address):
            yield Fault(
                file=other.file,
                key=other.key,
                what=f"{other.at} takes {other.what} {other.port}/{other.protocol}, and so does {one.at} ({one.key})",
                remedy="each end has an address and port of its own: change one of them",
            )


def _unpaired(processes: list[Process]) -> Iterator[Fault]:
    names = {
        role: {each.pair.link.name for each in processes if each.pair is not None and each.role is role}
        for role in Role
    }
    unknown = any(each.pair is None for each in processes)
    for each in processes:
        other = Role.EGRESS if each.role is Role.INGRESS else Role.INGRESS
        if each.pair is not None and each.pair.link.name not in names[other] and not unknown:
            yield Fault(
                file=each.file,
                key=each.at,
                what=f"{each.words} is here, and its {other.value} is not",
                remedy=f"if the {other.value} runs elsewhere, check both files together",
                warning=True,
            )


def _overlap(a: Address, b: Address) -> bool:
    return a.port == b.port and (a.host == b.host or bool({a.host, b.host} & {"0.0.0.0", "::"}))


def _place(one: Process, seen_from: Process) -> str:
    return one.at if one.file == seen_from.file else f"{one.at} in {one.file}"
