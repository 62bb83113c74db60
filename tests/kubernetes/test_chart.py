"""The Helm chart: what it renders is valid for Kubernetes, keeps one to one, and cannot be told otherwise."""

from __future__ import annotations

import os
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gapconn.config import Role
from gapconn.pair_file import load_pair

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "kubernetes" / "gapconn"
VALUES = Path(__file__).parent / "values.yaml"
HELM = os.environ.get("HELM", "helm")
KUBERNETES = ("1.27", "1.31", "1.34")

pytestmark = pytest.mark.helm

FURTHER_KINDS = {"ServiceMonitor", "PrometheusRule"}
"""Of the Prometheus Operator; Kubernetes has no schema of them."""


def helm(command: str, ends: str, *settings: str) -> subprocess.CompletedProcess[str]:
    options = [word for setting in (f"ends={{{ends}}}", *settings) for word in ("--set", setting)]
    release = ["site"] if command == "template" else ["--strict"]
    return subprocess.run(
        [HELM, command, *release, str(CHART), "-f", str(VALUES), "--kube-version", KUBERNETES[-1], *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@cache
def rendered(*ends: str) -> list[dict[str, Any]]:
    done = helm("template", ",".join(ends))
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(kind: str, *ends: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in rendered(*ends) if each["kind"] == kind}


def refusal(setting: str) -> str:
    done = helm("template", "egress", setting)
    assert done.returncode != 0, "it was accepted"
    return done.stderr


@pytest.mark.parametrize("ends", ["ingress", "egress", "ingress,egress"])
def test_lint(ends: str) -> None:
    done = helm("lint", ends)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    documents = rendered("ingress", "egress")
    kinds = [document["kind"] for document in documents]
    assert kinds.count("Deployment") == 4
    assert {"ConfigMap", "PersistentVolumeClaim", "Service", "PodDisruptionBudget", "NetworkPolicy"} < set(kinds)
    for document in documents:
        if document["kind"] not in FURTHER_KINDS:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_schema_violation_would_be_noticed() -> None:
    deployment = {**of_kind("Deployment", "egress")["site-orders-egress"], "spec": {"replicas": "one"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("end", ["ingress", "egress"])
def test_each_end_is_deployed_alone_and_is_one_process(end: str) -> None:
    deployments = of_kind("Deployment", end)
    assert set(deployments) == {f"site-orders-{end}", f"site-telemetry-{end}"}
    for deployment in deployments.values():
        spec = deployment["spec"]
        assert spec["replicas"] == 1
        assert spec["strategy"] == {"type": "Recreate"}
        container = spec["template"]["spec"]["containers"][0]
        assert container["args"] == [end, "/etc/gapconn/pair.toml"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/live"
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_every_selector_finds_exactly_one_deployment() -> None:
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for name, each in of_kind("Deployment", "ingress", "egress").items()
    }
    selectors = {
        **{name: each["spec"]["selector"] for name, each in of_kind("Service", "ingress", "egress").items()},
        **{
            name: each["spec"]["selector"]["matchLabels"]
            for name, each in of_kind("PodDisruptionBudget", "ingress", "egress").items()
        },
    }
    assert set(selectors) == set(labels)
    for name, selector in selectors.items():
        assert [other for other, has in labels.items() if selector.items() <= has.items()] == [name]


def test_the_datagrams_come_to_a_port_of_the_node_and_to_no_service() -> None:
    ports = [
        port
        for each in of_kind("Deployment", "egress").values()
        for port in each["spec"]["template"]["spec"]["containers"][0]["ports"]
        if port["protocol"] == "UDP"
    ]
    assert [(port["containerPort"], port["hostPort"]) for port in ports] == [(7400, 7400), (7401, 7401)]
    for service in of_kind("Service", "ingress", "egress").values():
        assert [port["protocol"] for port in service["spec"]["ports"]] == ["TCP"]


def test_gapconn_reads_what_the_pods_get(tmp_path: Path) -> None:
    for end in Role:
        for name, deployment in of_kind("Deployment", end.value).items():
            text = of_kind("ConfigMap", end.value)[name]["data"]["pair.toml"]
            assert tomllib.loads(text)
            file = tmp_path / f"{name}.toml"
            file.write_text(text)
            container = deployment["spec"]["template"]["spec"]["containers"][0]
            environ = {each["name"]: each.get("value", "secret") for each in container["env"]}
            pair = load_pair(file, environ, role=end)
            assert pair.admin is not None
            assert str(pair.admin.listen) == "0.0.0.0:9464"
            assert pair.link.state_directory == "/var/lib/gapconn"
            if "orders" in name:
                assert pair.link.security.key_file == "/etc/gapconn/keys/orders.key"


def test_secrets_are_only_referred_to() -> None:
    pod = of_kind("Deployment", "ingress")["site-orders-ingress"]["spec"]["template"]["spec"]
    environ = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert environ["SOURCE_KAFKA_PASSWORD"]["valueFrom"] == {"secretKeyRef": {"name": "kafka", "key": "password"}}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "gapconn-orders"
    assert volumes["keys"]["secret"]["defaultMode"] == 0o440
    assert of_kind("Secret", "ingress", "egress") == {}
    egress = of_kind("Deployment", "egress")["site-orders-egress"]["spec"]["template"]["spec"]
    assert "token" not in {volume["name"] for volume in egress["volumes"]}


def test_the_state_outlives_the_release() -> None:
    claims = of_kind("PersistentVolumeClaim", "ingress", "egress")
    assert len(claims) == 4
    assert all(each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in claims.values())
    assert claims["site-orders-egress"]["spec"]["resources"]["requests"]["storage"] == "20Gi"


def test_the_rules_are_those_of_the_compose_stacks() -> None:
    (rules,) = of_kind("PrometheusRule", "egress").values()
    assert rules["spec"] == yaml.safe_load((CHART / "files" / "alerts.yml").read_text())


@pytest.mark.parametrize(
    "setting",
    [
        "pairs[0].replicas=2",
        "pairs[0].egress.replicas=2",
        "pairs[0].ingress.replicas=0",
        "egress.replicas=3",
        "replicas=2",
    ],
)
def test_more_than_one_replica_is_refused(setting: str) -> None:
    assert "replicas" in refusal(setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pairs[1].name=orders", "there twice"),
        ("pairs[0].port=70000", "port"),
        ("pairs[0].name=Orders", "name"),
        ("ends={both}", "ends"),
        ("ends=null", "ends"),
        ("pairs[0].strategy=RollingUpdate", "strategy"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(setting: str, said: str) -> None:
    assert said in refusal(setting)
