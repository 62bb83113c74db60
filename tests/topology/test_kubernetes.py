"""Rendered manifests: each wrong topology is refused with file, key and remedy, and a right one is not."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gapconn.check import Report
from gapconn.topology.check import check_all
from tests.topology.pairs import pair

Documents = dict[str, dict[str, Any]]
Change = Callable[[Documents], None]

PAIRS = {name: pair(name, f"egress-{name}:7400", 'bind = "0.0.0.0:7400"') for name in "ab"}


def deployment(name: str, role: str, link: str) -> dict[str, Any]:
    container = {
        "name": "gapconn",
        "image": "gapconn:1",
        "args": [role, "/etc/gapconn/pair.toml"],
        "env": [{"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "volumeMounts": [
            {"name": "pair", "mountPath": "/etc/gapconn"},
            {"name": "state", "mountPath": "/var/lib/gapconn"},
        ],
    }
    volumes = [
        {"name": "pair", "configMap": {"name": f"pair-{link}"}},
        {"name": "state", "persistentVolumeClaim": {"claimName": name}},
    ]
    labels = {"app": "gapconn", "end": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "gap"},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}},
        },
    }


def manifest(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "gap"}, **rest}


def service(name: str, protocol: str = "UDP", **selector: str) -> dict[str, Any]:
    return manifest("Service", name, spec={"selector": selector, "ports": [{"port": 7400, "protocol": protocol}]})


def right() -> Documents:
    documents: Documents = {"map-a": manifest("ConfigMap", "pair-a", data={"pair.toml": PAIRS["a"]})}
    documents["map-b"] = manifest("ConfigMap", "pair-b", data={"pair.toml": PAIRS["b"]})
    for link in "ab":
        for role in ("ingress", "egress"):
            documents[f"{role}-{link}"] = deployment(f"{role}-{link}", role, link)
        documents[f"service-{link}"] = service(f"egress-{link}", end=f"egress-{link}")
    documents["metrics"] = service("metrics", "TCP", app="gapconn")
    return documents


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Documents], Report]:
    """Checks documents as `all.yaml`."""
    monkeypatch.chdir(tmp_path)

    def check(documents: Documents) -> Report:
        Path("all.yaml").write_text(yaml.safe_dump_all(documents.values()) + "---\n")
        return check_all([Path("all.yaml")], {})

    return check


Checked = Callable[[Documents], Report]


def spec_of(documents: Documents, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents[name]["spec"]
    return spec


def pod_of(documents: Documents, name: str) -> dict[str, Any]:
    pod: dict[str, Any] = spec_of(documents, name)["template"]["spec"]
    return pod


def container_of(documents: Documents, name: str) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(documents, name)["containers"][0]
    return container


def test_a_right_one(checked: Checked) -> None:
    report = checked(right())
    assert (report.problems, report.warnings) == ([], [])
    assert report.ends == [
        "Deployment/ingress-a in namespace gap in all.yaml: the ingress of link 'a'",
        "Deployment/egress-a in namespace gap in all.yaml: the egress of link 'a'",
        "Deployment/ingress-b in namespace gap in all.yaml: the ingress of link 'b'",
        "Deployment/egress-b in namespace gap in all.yaml: the egress of link 'b'",
    ]


def replicas(documents: Documents) -> None:
    spec_of(documents, "ingress-a")["replicas"] = 2


def replicas_of_an_egress(documents: Documents) -> None:
    spec_of(documents, "egress-a")["replicas"] = 2


def rolling_update(documents: Documents) -> None:
    spec_of(documents, "egress-a")["strategy"] = {"type": "RollingUpdate"}


def no_strategy(documents: Documents) -> None:
    del spec_of(documents, "egress-a")["strategy"]


def stateful_set(documents: Documents) -> None:
    documents["egress-a"]["kind"] = "StatefulSet"
    spec_of(documents, "egress-a")["replicas"] = 3
    del documents["service-a"]


def daemon_set(documents: Documents) -> None:
    documents["ingress-a"]["kind"] = "DaemonSet"
    del spec_of(documents, "ingress-a")["replicas"]


def autoscaler(documents: Documents) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ingress-b"}
    documents["scaler"] = manifest("HorizontalPodAutoscaler", "grow", spec={"scaleTargetRef": target, "maxReplicas": 3})


def service_of_both(documents: Documents) -> None:
    documents["service-a"]["spec"]["selector"] = {"app": "gapconn"}


def node_port(documents: Documents) -> None:
    for name in ("service-a", "service-b"):
        documents[name]["spec"]["ports"][0]["nodePort"] = 30_740


def host_port(documents: Documents) -> None:
    for name in ("egress-a", "egress-b"):
        container_of(documents, name)["ports"] = [{"containerPort": 7400, "hostPort": 7400, "protocol": "UDP"}]


def host_network(documents: Documents) -> None:
    for name in ("egress-a", "egress-b"):
        pod_of(documents, name)["hostNetwork"] = True


def twice(documents: Documents) -> None:
    documents["again"] = deployment("again", "ingress", "a")


def same_id(documents: Documents) -> None:
    for link in "ab":
        text = pair(link, f"egress-{link}:7400", "id = 7")
        documents[f"map-{link}"]["data"]["pair.toml"] = text


def wrong_pair_file(documents: Documents) -> None:
    documents["map-a"]["data"]["pair.toml"] = PAIRS["a"].replace("[link]", '[link]\nrate = "fast"')
    del documents["ingress-a"]


WRONG: dict[str, tuple[Change, list[list[str]]]] = {
    "replicas": (
        replicas,
        [["all.yaml: Deployment/ingress-a in namespace gap: spec.replicas: 2 replicas of the ingress", "make it 1"]],
    ),
    "replicas of an egress behind a Service": (
        replicas_of_an_egress,
        [
            ["Deployment/egress-a in namespace gap: spec.replicas: 2 replicas of the egress of link 'a'"],
            ["Service/egress-a in namespace gap: spec.selector: several endpoints (", "with 2 replicas)"],
        ],
    ),
    "a rolling update": (
        rolling_update,
        [["Deployment/egress-a in namespace gap: spec.strategy.type: RollingUpdate: during", 'make it "Recreate"']],
    ),
    "no strategy": (no_strategy, [["spec.strategy.type: RollingUpdate, the default: during an update"]]),
    "a StatefulSet with several": (
        stateful_set, [["StatefulSet/egress-a in namespace gap: spec.replicas: 3 replicas of the egress"]],
    ),
    "a DaemonSet": (daemon_set, [["DaemonSet/ingress-a in namespace gap: kind: the ingress of link 'a' on each node"]]),
    "an autoscaler": (
        autoscaler,
        [["HorizontalPodAutoscaler/grow in namespace gap: spec.scaleTargetRef: scales Deployment/ingress-b", "remove"]],
    ),
    "a Service with several endpoints": (
        service_of_both,
        [["Service/egress-a in namespace gap: spec.selector: several endpoints (Deployment/ingress-a", "spread over"]],
    ),
    "the same node port": (
        node_port,
        [["Service/egress-b in namespace gap: spec.ports[0].nodePort:", "takes node port 30740/udp, and so does"]],
    ),
    "the same host port": (
        host_port, [["Deployment/egress-b in namespace gap: hostPort:", "takes host port 7400/udp, and so does"]],
    ),
    "the network of the node": (
        host_network,
        [["Deployment/egress-b in namespace gap: listens on 0.0.0.0:7400, and so does Deployment/egress-a"]],
    ),
    "one end of one pair twice": (
        twice,
        [["Deployment/again in namespace gap: runs the ingress of link 'a' with ConfigMap/pair-a (pair.toml), and so"]],
    ),
    "two pairs with one id": (
        same_id, [["ConfigMap/pair-a (pair.toml) and ConfigMap/pair-b (pair.toml): link:", "have the same id 7"]],
    ),
    "a pair file that is wrong": (
        wrong_pair_file, [["all.yaml: ConfigMap/pair-a (pair.toml): link.rate: ", "'fast'"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_one(case: str, checked: Checked) -> None:
    change, expected = WRONG[case]
    documents = right()
    change(documents)
    problems = checked(documents).problems
    assert len(problems) == len(expected), problems
    for problem, fragments in zip(problems, expected, strict=True):
        for fragment in fragments:
            assert fragment in problem


def alone(documents: Documents) -> None:
    del documents["egress-a"]


def one_claim(documents: Documents) -> None:
    pod_of(documents, "egress-b")["volumes"][1]["persistentVolumeClaim"]["claimName"] = "egress-a"


def no_map(documents: Documents) -> None:
    del documents["map-a"]


def no_volume(documents: Documents) -> None:
    container_of(documents, "ingress-a")["args"][1] = "/built/in.toml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (alone, "Deployment/ingress-a in namespace gap: the ingress of link 'a' is here, and its egress is not"),
        (one_claim, "uses PersistentVolumeClaim/gap/egress-a, and so does Deployment/egress-a"),
        (no_map, "reads /etc/gapconn/pair.toml of ConfigMap/pair-a (pair.toml), which is not among the manifests"),
        (no_volume, "reads /built/in.toml, which is in no volume of a ConfigMap or Secret: it is not checked"),
    ],
)
def test_what_is_only_doubtful(change: Change, words: str, checked: Checked) -> None:
    documents = right()
    change(documents)
    report = checked(documents)
    assert report.problems == []
    assert any(words in warning for warning in report.warnings), report.warnings


def test_two_ends_in_one_pod(checked: Checked) -> None:
    documents = right()
    moved = pod_of(documents, "egress-b")
    for volume, mount in zip(moved["volumes"], moved["containers"][0]["volumeMounts"], strict=True):
        volume["name"] = mount["name"] = f"{volume['name']}-b"
    pod = pod_of(documents, "egress-a")
    pod["containers"] += moved["containers"]
    pod["volumes"] += moved["volumes"]
    del documents["egress-b"], documents["service-b"]
    (problem,) = checked(documents).problems
    assert "Deployment/egress-a in namespace gap: listens on 0.0.0.0:7400, and so does Deployment/egress-a" in problem


def test_one_claim_for_the_state_of_one_end(checked: Checked) -> None:
    documents = right()
    twice(documents)
    pod_of(documents, "again")["volumes"][1]["persistentVolumeClaim"]["claimName"] = "ingress-a"
    problems = checked(documents).problems
    assert any(
        "keeps the state of the ingress of link 'a' in PersistentVolumeClaim/gap/ingress-a" in each for each in problems
    )


def test_pair_files_in_secrets_lists_and_subpaths(checked: Checked) -> None:
    """Other ways to say the same are understood: the mistake behind them is found."""
    documents = right()
    encoded = base64.b64encode(PAIRS["a"].encode()).decode()
    documents["map-a"] = manifest("List", "", items=[manifest("Secret", "pair-a", data={"a": encoded})])
    for name in ("ingress-a", "egress-a"):
        secret = {"secretName": "pair-a", "items": [{"key": "a", "path": "pair.toml"}]}
        pod_of(documents, name)["volumes"][0] = {"name": "pair", "secret": secret}
        container_of(documents, name)["command"] = ["tini", "--", "gapconn"]
    mount = {"name": "pair", "mountPath": "/etc/gapconn/pair.toml", "subPath": "pair.toml"}
    container_of(documents, "egress-b")["volumeMounts"][0] = mount
    report = checked(documents)
    assert (report.problems, report.warnings) == ([], [])
    assert len(report.ends) == 4
    replicas(documents)
    (problem,) = checked(documents).problems
    assert "2 replicas of the ingress of link 'a'" in problem


def test_workloads_of_others_are_not_looked_at(checked: Checked) -> None:
    documents = right()
    other = deployment("other", "serve", "a")
    other["spec"].update(replicas=9, strategy={})
    other["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    documents["other"] = other
    report = checked(documents)
    assert (report.problems, report.warnings) == ([], [])


def test_manifests_of_several_files_are_one_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documents = right()
    twice(documents)
    again = documents.pop("again")
    Path("one.yaml").write_text(yaml.safe_dump_all(documents.values()))
    Path("two.yml").write_text(yaml.safe_dump(again))
    (problem,) = check_all([Path("one.yaml"), Path("two.yml")], {}).problems
    assert problem.startswith("one.yaml, two.yml: Deployment/again in namespace gap: runs the ingress of link 'a'")
