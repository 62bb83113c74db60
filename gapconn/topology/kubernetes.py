"""Rendered Kubernetes manifests: which workloads are ends of links, and what Kubernetes would do to them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

import attrs

from gapconn.config import Role
from gapconn.topology.configurations import HIDDEN, Configuration, as_file, read_configuration
from gapconn.topology.model import Fault, Process, Publication, Topology, end_of, kept_in, state_directory

_WORKLOADS: Final = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Pod", "Job")
_SCALERS: Final = {
    "HorizontalPodAutoscaler": "scaleTargetRef",  # autoscaling
    "ScaledObject": "scaleTargetRef",  # of KEDA
}

Manifest = dict[str, Any]


def is_manifest(document: Any) -> bool:
    """Whether a YAML document is one of Kubernetes."""
    return isinstance(document, dict) and "apiVersion" in document and "kind" in document


def read_kubernetes(file: str, documents: list[Any]) -> Topology:
    """What these manifests would run, all of one file or of several together."""
    manifests = list(_flat(documents))
    cluster = _Cluster(file, manifests)
    workloads = [found for manifest in manifests for found in cluster.workloads(manifest)]
    ends = [each for each in workloads if each.process is not None]
    faults = [fault for each in ends for fault in (*each.faults, *_once(file, each))]
    faults += _scaled(file, manifests, ends)
    faults += _several_endpoints(file, manifests, workloads)
    faults += _shared_claims(file, ends)
    return Topology(
        processes=[each.process for each in ends if each.process is not None],
        publications=[*_node_ports(file, manifests), *(port for each in workloads for port in _host_ports(file, each))],
        faults=faults,
    )


def _flat(documents: list[Any]) -> Iterator[Manifest]:
    for document in documents:
        if is_manifest(document):
            if document["kind"] == "List":
                yield from _flat(document.get("items") or [])
            else:
                yield document


def _at(manifest: Manifest) -> str:
    namespace = _namespace(manifest)
    name = f"{manifest['kind']}/{_metadata(manifest).get('name', '')}"
    return name if namespace == "default" else f"{name} in namespace {namespace}"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = manifest.get("metadata") or {}
    return found


def _namespace(manifest: Manifest) -> str:
    return str(_metadata(manifest).get("namespace") or "default")


@attrs.frozen(kw_only=True)
class _Workload:
    """Something that makes pods."""

    manifest: Manifest
    at: str
    labels: Mapping[str, str]
    """Of its pods."""
    pod: dict[str, Any]
    """The pods' `spec`."""
    process: Process | None = None
    faults: list[Fault] = attrs.field(factory=list)

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest.get("spec") or {}
        return found


@attrs.frozen
class _Cluster:
    file: str
    manifests: list[Manifest]

    def workloads(self, manifest: Manifest) -> Iterator[_Workload]:
        """The workload that a manifest is, once for each end in it; once where it has none."""
        if manifest["kind"] == "CronJob":
            template: dict[str, Any] = (manifest.get("spec") or {}).get("jobTemplate") or {}
            template = (template.get("spec") or {}).get("template") or {}
        elif manifest["kind"] == "Pod":
            template = manifest
        elif manifest["kind"] in _WORKLOADS:
            template = (manifest.get("spec") or {}).get("template") or {}
        else:
            return
        pod: dict[str, Any] = template.get("spec") or {}
        plain = _Workload(manifest=manifest, at=_at(manifest), labels=_metadata(template).get("labels") or {}, pod=pod)
        found = [
            attrs.evolve(plain, process=process, faults=faults)
            for container in pod.get("containers") or []
            for process, faults in self._process(plain, container)
        ]
        yield from found or [plain]

    def _process(self, workload: _Workload, container: dict[str, Any]) -> Iterator[tuple[Process, list[Fault]]]:
        words = [str(word) for key in ("command", "args") for word in container.get(key) or []]
        end = end_of(words, by_image=not container.get("command"))
        if end is None:
            return
        role, path = end
        found, name = self._configuration(workload, container, role, path)
        yield (
            Process(
                role=role,
                file=self.file,
                at=workload.at,
                configuration=name,
                pair=found.pair,
                host="the node's network" if workload.pod.get("hostNetwork") else workload.at,
                state=self._state(workload, container, found),
            ),
            found.faults,
        )

    def _configuration(
        self, workload: _Workload, container: dict[str, Any], role: Role, path: str
    ) -> tuple[Configuration, str]:
        namespace = _namespace(workload.manifest)
        for mount in container.get("volumeMounts") or []:
            target = PurePath(str(mount.get("mountPath", "")))
            if not PurePath(path).is_relative_to(target):
                continue
            volumes: list[dict[str, Any]] = workload.pod.get("volumes") or []
            volume: dict[str, Any] = next((each for each in volumes if each.get("name") == mount.get("name")), {})
            key = str(mount.get("subPath") or PurePath(path).relative_to(target))
            for kind, source in _sources(volume):
                name, wanted = _key_of(source, key)
                text = self._text(kind, name, namespace, wanted)
                where = f"{kind}/{name} ({wanted})"
                if text is not None:
                    with as_file(text) as file:
                        return read_configuration(file, f"{self.file}: {where}", _environment(container), role), where
                return self._unread(workload, f"reads {path} of {where}, which is not among the manifests"), where
        return self._unread(workload, f"reads {path}, which is in no volume of a ConfigMap or Secret"), path

    def _unread(self, workload: _Workload, what: str) -> Configuration:
        remedy = "check the ConfigMap or Secret with the pair file together with it"
        fault = Fault(file=self.file, key=workload.at, what=f"{what}: it is not checked", remedy=remedy, warning=True)
        return Configuration(pair=None, faults=[fault])

    def _text(self, kind: str, name: str, namespace: str, key: str) -> str | None:
        for manifest in self.manifests:
            if manifest["kind"] != kind or _metadata(manifest).get("name") != name or _namespace(manifest) != namespace:
                continue
            plain = (manifest.get("data" if kind == "ConfigMap" else "stringData") or {}).get(key)
            if plain is not None:
                return str(plain)
            encoded = (manifest.get("data") or {}).get(key)
            try:
                return None if encoded is None else base64.b64decode(encoded).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
        return None

    def _state(self, workload: _Workload, container: dict[str, Any], found: Configuration) -> str:
        if found.pair is None:
            return ""
        mounts = [
            (f"{claim}/{mount.get('subPath', '')}".rstrip("/"), str(mount.get("mountPath", "")))
            for mount in container.get("volumeMounts") or []
            for claim in _claims(workload, str(mount.get("name")))
        ]
        return kept_in(state_directory(found.pair.link), mounts)


def _sources(volume: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
        if part.get("configMap"):
            yield "ConfigMap", part["configMap"]
        if part.get("secret"):
            yield "Secret", part["secret"]


def _key_of(source: dict[str, Any], path: str) -> tuple[str, str]:
    """The name of a ConfigMap or Secret, and its key that is at this path of the volume."""
    for item in source.get("items") or []:
        if item.get("path") == path:
            path = str(item.get("key"))
            break
    return str(source.get("name") or source.get("secretName") or ""), path


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {
        str(each.get("name")): str(each["value"]) if each.get("value") is not None else HIDDEN
        for each in container.get("env") or []
    }


def _claims(workload: _Workload, volume_name: str) -> Iterator[str]:
    namespace = _namespace(workload.manifest)
    for volume in workload.pod.get("volumes") or []:
        if volume.get("name") == volume_name:
            if volume.get("persistentVolumeClaim"):
                yield f"PersistentVolumeClaim/{namespace}/{volume['persistentVolumeClaim'].get('claimName')}"
            elif volume.get("hostPath"):
                yield f"hostPath:{volume['hostPath'].get('path')}"


# -- the rules of Kubernetes -------------------------------------------------------------------------------------


def _once(file: str, workload: _Workload) -> Iterator[Fault]:
    """An end must be there once, and never twice during an update."""
    kind, spec, process = workload.manifest["kind"], workload.spec, workload.process
    assert process is not None
    if kind == "DaemonSet":
        yield Fault(
            file=file,
            key=f"{workload.at}: kind",
            what=f"{process.words} on each node, but a pair has one of each end",
            remedy="make it a Deployment with 1 replica and strategy Recreate",
        )
    for key in ("replicas", "parallelism"):
        count = spec.get(key)
        if isinstance(count, int) and count > 1:
            yield Fault(
                file=file,
                key=f"{workload.at}: spec.{key}",
                what=f"{count} replicas of {process.words}, but a pair has one of each end",
                remedy="make it 1; more capacity is more pairs, each with an address of its own",
            )
    strategy = (spec.get("strategy") or {}).get("type") or "RollingUpdate, the default"
    if kind == "Deployment" and strategy != "Recreate":
        yield Fault(
            file=file,
            key=f"{workload.at}: spec.strategy.type",
            what=f"{strategy}: during an update there would be two of {process.words}",
            remedy='make it "Recreate"',
        )


def _scaled(file: str, manifests: list[Manifest], ends: list[_Workload]) -> Iterator[Fault]:
    for manifest in manifests:
        reference = (manifest.get("spec") or {}).get(_SCALERS.get(manifest["kind"], ""))
        if not isinstance(reference, dict):
            continue
        for end in ends:
            same_kind = reference.get("kind", "Deployment") == end.manifest["kind"]
            same_name = reference.get("name") == _metadata(end.manifest).get("name")
            if same_kind and same_name and _namespace(manifest) == _namespace(end.manifest) and end.process is not None:
                yield Fault(
                    file=file,
                    key=f"{_at(manifest)}: spec.scaleTargetRef",
                    what=f"scales {end.at}, {end.process.words}, but a pair has one of each end",
                    remedy="remove it; more capacity is more pairs",
                )


def _several_endpoints(file: str, manifests: list[Manifest], workloads: list[_Workload]) -> Iterator[Fault]:
    """A Service spreads datagrams: behind one that takes UDP there must be one egress and nothing else.

    One that takes only TCP leads to admin endpoints, of which there may be many.
    """
    for service in (manifest for manifest in manifests if manifest["kind"] == "Service"):
        spec = service.get("spec") or {}
        selector: dict[str, str] = spec.get("selector") or {}
        if not selector or not any(port.get("protocol") == "UDP" for port in spec.get("ports") or []):
            continue
        behind = {
            each.at: each
            for each in workloads
            if _namespace(each.manifest) == _namespace(service) and selector.items() <= each.labels.items()
        }
        egresses = [
            each for each in workloads
            if each.at in behind and each.process is not None and each.process.role is Role.EGRESS
        ]  # fmt: skip
        replicas = max((each.spec.get("replicas") or 1 for each in egresses), default=1)
        if egresses and (len(behind) > 1 or replicas > 1):
            words = ", ".join(behind) + (f" with {replicas} replicas" if len(behind) == 1 else "")
            yield Fault(
                file=file,
                key=f"{_at(service)}: spec.selector",
                what=f"several endpoints ({words}): datagrams of one ingress would be spread over them",
                remedy="a label of its own for each egress, and a Service that selects only that",
            )


def _shared_claims(file: str, ends: list[_Workload]) -> Iterator[Fault]:
    first: dict[str, _Workload] = {}
    for end in ends:
        for volume in end.pod.get("volumes") or []:
            for claim in _claims(end, str(volume.get("name"))):
                other = first.setdefault(claim, end)
                if other.at != end.at and claim.startswith("PersistentVolumeClaim"):
                    yield Fault(
                        file=file,
                        key=f"{end.at}: spec.template.spec.volumes",
                        what=f"uses {claim}, and so does {other.at}: state belongs on a volume of one process",
                        remedy="give each end a claim of its own",
                        warning=True,
                    )


def _node_ports(file: str, manifests: list[Manifest]) -> Iterator[Publication]:
    for service in (manifest for manifest in manifests if manifest["kind"] == "Service"):
        for index, port in enumerate((service.get("spec") or {}).get("ports") or []):
            if port.get("nodePort"):
                yield Publication(
                    file=file,
                    key=f"{_at(service)}: spec.ports[{index}].nodePort",
                    at=_at(service),
                    address="",
                    port=int(port["nodePort"]),
                    protocol=str(port.get("protocol", "TCP")).lower(),
                    what="node port",
                )


def _host_ports(file: str, workload: _Workload) -> Iterator[Publication]:
    for container in workload.pod.get("containers") or []:
        for port in container.get("ports") or []:
            number = port.get("hostPort")
            if number:
                yield Publication(
                    file=file,
                    key=f"{workload.at}: hostPort",
                    at=workload.at,
                    address=str(port.get("hostIP", "")),
                    port=int(number),
                    protocol=str(port.get("protocol", "TCP")).lower(),
                )
