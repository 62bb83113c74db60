"""What would run: the ends of links, as a topology declares them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import PurePath

import attrs

from gapconn.config import Link, Pair, Role
from gapconn.wording import default_of

IMAGE_STATE_DIRECTORY = "/var/lib/gapconn"


@attrs.frozen(kw_only=True)
class Fault:
    """Something that must not be so, or, as a warning, should not."""

    file: str
    key: str
    """Where in the file."""
    what: str
    remedy: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.what}; {self.remedy}"


@attrs.frozen(kw_only=True)
class Process:
    """One end of a link, as a service or workload runs it."""

    role: Role
    file: str
    """Which declares it."""
    at: str
    """Where in it: `services.egress`, `Deployment/egress`."""
    configuration: str
    """Which pair file it reads: the same text for the same file."""
    pair: Pair | None = None
    """None where the pair file is not known."""
    host: str
    """Processes on the same host, or in the same network of containers, share ports."""
    state: str = ""
    """The volume or directory that keeps its state, with the path in it; empty where it has none that lasts."""

    @property
    def words(self) -> str:
        """Which end it is, for people."""
        link = f" of link {self.pair.link.name!r}" if self.pair is not None else ""
        return f"the {self.role.value}{link}"


@attrs.frozen(kw_only=True)
class Publication:
    """A port of a host that leads to something."""

    file: str
    key: str
    at: str
    """What it leads to."""
    address: str
    """Empty for every address."""
    port: int
    protocol: str
    """`tcp` or `udp`."""
    what: str = "host port"


@attrs.frozen(kw_only=True)
class Topology:
    """What was read of one file, with what is wrong by the rules of its kind."""

    processes: list[Process] = attrs.field(factory=list)
    publications: list[Publication] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)


def end_of(command: Iterable[str], *, by_image: bool) -> tuple[Role, str] | None:
    """Which end a command line runs, and with which file; None if it runs none.

    Args:
        command: The words; a shell's script may be one of them.
        by_image: The program is the image's: the words are its arguments.
    """
    words = [part for word in command for part in _parts(word)]
    roles = {role.value: role for role in Role}
    for program, role, file in zip(words, words[1:], words[2:], strict=False):
        if PurePath(program).name == "gapconn" and role in roles:
            return roles[role], file
    if by_image and len(words) == 2 and words[0] in roles:
        return roles[words[0]], words[1]
    return None


def _parts(word: str) -> list[str]:
    if " " not in word:
        return [word]
    try:
        return shlex.split(word)
    except ValueError:
        return [word]


def state_directory(link: Link) -> str:
    """Where an end keeps its state in the image: the default is not that of whoever checks."""
    default = default_of(attrs.fields(Link).state_directory, link)
    return IMAGE_STATE_DIRECTORY if link.state_directory == default else link.state_directory


def kept_in(path: str, mounts: Iterable[tuple[str, str]]) -> str:
    """Where `path` in a container is kept, by its mounts (source, target); empty if in none."""
    inside = [(source, target) for source, target in mounts if target and PurePath(path).is_relative_to(target)]
    if not inside:
        return ""
    source, target = max(inside, key=lambda mount: len(PurePath(mount[1]).parts))
    return str(PurePath(source) / PurePath(path).relative_to(target))
