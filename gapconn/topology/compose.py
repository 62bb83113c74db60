"""Compose files: which services are ends of links, and what Compose would do to them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from gapconn.config import Pair, Role
from gapconn.errors import ConfigError
from gapconn.topology.configurations import HIDDEN, read_configuration
from gapconn.topology.documents import read_documents
from gapconn.topology.model import Fault, Process, Publication, Topology, end_of, kept_in, state_directory

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<how>:?[-?+])(?P<word>[^}]*))?\})"
)
_PORTS = re.compile(r"(?:(?P<address>.*):)?(?P<first>\d+)(?:-(?P<last>\d+))?:\d+(?:-\d+)?(?:/(?P<protocol>\w+))?")
_EXTENDS_MAX = 20


def is_compose(document: Any) -> bool:
    """Whether a YAML document is a Compose file."""
    return isinstance(document, dict) and isinstance(document.get("services"), dict) and "kind" not in document


def read_compose(path: Path, environ: Mapping[str, str]) -> Topology:
    """What this Compose file would run.

    Args:
        path: The file.
        environ: For `${NAME}` in it; `.env` beside it is read too.

    Raises:
        ConfigError: it cannot be read.
    """
    reader = _Reader(path, {**_dot_env(path.parent / ".env"), **environ})
    services = {name: reader.service(path, name) for name in _load(path)["services"]}
    processes: list[Process] = []
    publications: list[Publication] = []
    faults: list[Fault] = []
    for name, service in services.items():
        at = f"services.{name}"
        publications += _published(path, at, service)
        command, by_image = _command(service)
        end = end_of(command, by_image=by_image)
        if end is None:
            continue
        process, found = _process(reader, at, service, *end)
        processes.append(process)
        faults += found
        faults += _faults(str(path), at, service, process)
    return Topology(processes=processes, publications=publications, faults=faults)


def _load(path: Path) -> dict[str, Any]:
    documents = read_documents(path)
    if len(documents) != 1 or not is_compose(documents[0]):
        raise ConfigError([f"{path}: services: the section is missing, so it is no Compose file"])
    found: dict[str, Any] = documents[0]
    return found


def _dot_env(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


@attrs.define
class _Reader:
    """Services with what they extend, and with variables replaced. Paths in them are absolute afterwards."""

    path: Path
    environ: Mapping[str, str]

    def service(self, path: Path, name: str, depth: int = 0) -> dict[str, Any]:
        services = _load(path)["services"]
        raw = services.get(name)
        if not isinstance(raw, dict) or depth > _EXTENDS_MAX:
            raise ConfigError([f"{path}: services.{name}: no service that can be read"])
        own: dict[str, Any] = self._replaced(raw)
        own["volumes"] = [_mount(volume, path.parent) for volume in own.get("volumes") or []]
        own["environment"] = {**self._env_files(path, own), **self._environment(own.get("environment"))}
        extends = own.pop("extends", None)
        if extends is None:
            return own
        other = {"service": extends} if isinstance(extends, str) else extends
        base_path = path.parent / other["file"] if "file" in other else path
        return _merged(self.service(base_path, other["service"], depth + 1), own)

    def _env_files(self, path: Path, service: dict[str, Any]) -> dict[str, str]:
        files = service.get("env_file") or []
        found: dict[str, str] = {}
        for each in [files] if isinstance(files, str | dict) else files:
            found.update(_dot_env(path.parent / (each["path"] if isinstance(each, dict) else each)))
        return found

    def _environment(self, given: Any) -> dict[str, str]:
        """What has no value here comes from the environment of whoever starts it."""
        pairs = given.items() if isinstance(given, dict) else (_split(item) for item in given or [])
        return {
            str(name): self.environ.get(str(name), HIDDEN) if value is None else str(value) for name, value in pairs
        }

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(self._variable, value)
        if isinstance(value, dict):
            return {key: self._replaced(item) for key, item in value.items()}
        return [self._replaced(item) for item in value] if isinstance(value, list) else value

    def _variable(self, match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        value = self.environ.get(match["plain"] or match["name"])
        how, word = match["how"] or "", match["word"] or ""
        missing = value is None or (how.startswith(":") and not value)
        if how.endswith("+"):
            return "" if missing else word
        if missing:
            return word if how.endswith("-") else ""
        return value or ""


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, **own}
    for key in ("environment", "deploy"):
        merged[key] = {**(base.get(key) or {}), **(own.get(key) or {})}
    for key in ("volumes", "ports"):
        merged[key] = [*(base.get(key) or []), *(own.get(key) or [])]
    return merged


def _mount(volume: Any, directory: Path) -> tuple[str, str]:
    """Source and target; a source that is a path of the host is absolute."""
    if isinstance(volume, dict):
        source, target = str(volume.get("source", "")), str(volume.get("target", ""))
    else:
        parts = str(volume).split(":")
        source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    if source.startswith((".", "~")):
        source = str((directory / Path(source).expanduser()).resolve())
    return source, target


def _split(item: Any) -> tuple[str, str | None]:
    name, separator, value = str(item).partition("=")
    return name, value if separator else None


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return shlex.split(value)
    return [str(word) for word in value or []]


def _command(service: dict[str, Any]) -> tuple[list[str], bool]:
    """The command line, and whether its program is the image's."""
    entrypoint = _words(service.get("entrypoint"))
    command = service.get("command")
    return [*entrypoint, *_words(command)], not entrypoint


def _process(reader: _Reader, at: str, service: dict[str, Any], role: Role, file: str) -> tuple[Process, list[Fault]]:
    mounts: list[tuple[str, str]] = service["volumes"]
    where = kept_in(file, [*mounts, *_config_mounts(reader, service)])
    pair, faults, name = None, [], where or file
    if where.startswith("/"):
        name = _short(Path(where), reader.path.parent)
        found = read_configuration(Path(where), name, {**service["environment"]}, role)
        pair, faults = found.pair, found.faults
    else:
        faults = [
            Fault(
                file=str(reader.path),
                key=at,
                what=f"reads {file}, which is in no file or directory of this host that is mounted: it is not checked",
                remedy="mount the pair file from beside the Compose file",
                warning=True,
            )
        ]
    process = Process(
        role=role,
        file=str(reader.path),
        at=at,
        configuration=name,
        pair=pair,
        host=_host(reader.path, at, str(service.get("network_mode", ""))),
        state=_state(reader, pair, mounts) if pair is not None else "",
    )
    return process, faults


def _state(reader: _Reader, pair: Pair, mounts: list[tuple[str, str]]) -> str:
    where = kept_in(state_directory(pair.link), mounts)
    if not where or where.startswith("/"):
        return where
    # A volume has the name of its project before its own; without another one that is the directory's.
    given = _load(reader.path).get("name") or reader.environ.get("COMPOSE_PROJECT_NAME")
    return f"volume {where} of project {given or reader.path.resolve().parent.name}"


def _host(path: Path, at: str, network: str) -> str:
    """Whose network a service has: that of its host, of another service or container, or its own."""
    kind, _, other = network.partition(":")
    if kind == "service":
        return f"{path}: services.{other}"
    return network if kind in ("host", "container") else f"{path}: {at}"


def _config_mounts(reader: _Reader, service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """`configs` and `secrets` that are files."""
    document = _load(reader.path)
    for section, default in (("configs", "/"), ("secrets", "/run/secrets/")):
        for use in service.get(section) or []:
            name = use if isinstance(use, str) else use.get("source", "")
            target = default + name if isinstance(use, str) else use.get("target", default + name)
            declared = (document.get(section) or {}).get(name) or {}
            if "file" in declared:
                yield str((reader.path.parent / declared["file"]).resolve()), target


def _short(path: Path, directory: Path) -> str:
    base = directory.resolve()
    return str(directory / path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _published(path: Path, at: str, service: dict[str, Any]) -> Iterator[Publication]:
    for index, port in enumerate(service.get("ports") or []):
        key = f"{at}.ports[{index}]"
        if isinstance(port, dict):
            found = {
                "address": str(port.get("host_ip", "")),
                "first": str(port.get("published", "")).partition("-")[0],
                "last": str(port.get("published", "")).partition("-")[2],
                "protocol": str(port.get("protocol", "tcp")),
            }
        else:
            match = _PORTS.fullmatch(str(port))
            found = {name: value or "" for name, value in match.groupdict().items()} if match else {"first": ""}
        if found["first"].isdigit():
            first = int(found["first"])
            last = int(found["last"]) if found["last"].isdigit() else first
            for number in range(first, min(last, 65_535) + 1):
                yield Publication(
                    file=str(path),
                    key=key,
                    at=at,
                    address=found["address"].strip("[]"),
                    port=number,
                    protocol=found["protocol"] or "tcp",
                )


def _faults(file: str, at: str, service: dict[str, Any], process: Process) -> Iterator[Fault]:
    """What Compose would do to an end that must be there once."""
    deploy = service.get("deploy") or {}
    for key, count in (("scale", service.get("scale")), ("deploy.replicas", deploy.get("replicas"))):
        if count is not None and str(count) not in ("0", "1"):
            yield Fault(
                file=file,
                key=f"{at}.{key}",
                what=f"{count} instances of {process.words}, but a pair has one of each end",
                remedy="make it 1; more capacity is more pairs, each with an address of its own",
            )
    if deploy.get("mode") == "global":
        yield Fault(
            file=file,
            key=f"{at}.deploy.mode",
            what=f"an instance of {process.words} on each node, but a pair has one of each end",
            remedy="make it replicated, with 1 replica",
        )
    if (deploy.get("update_config") or {}).get("order") == "start-first":
        yield Fault(
            file=file,
            key=f"{at}.deploy.update_config.order",
            what=f"an update would run two of {process.words} at a time",
            remedy="make it stop-first",
        )
    if service.get("restart") in (None, "no", False) and "restart_policy" not in deploy:
        yield Fault(
            file=file,
            key=f"{at}.restart",
            what=f"nobody starts {process.words} again after a crash",
            remedy="restart: always",
            warning=True,
        )
