"""Alert rules and the dashboard name only what running programs show, and Prometheus takes the files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.processes.conftest import ends as ends  # noqa: PLC0414 - a fixture
from tests.processes.ends import End, Ends

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "kubernetes" / "gapconn" / "files" / "alerts.yml"
DASHBOARD = ROOT / "compose" / "grafana" / "dashboards" / "gapconn.json"
NAME = re.compile(r"\b(?:gapconn|process)_[a-z_]+\b")
LABEL = re.compile(r"\{\{\s*\$?(?:labels\.)?(\w+)\s*\}\}")
DEDUP = """
[dedup]
name = "orders"
identity = "hash"

[[input]]
link = "a"
type = "udp"
listen = "127.0.0.1:0"

[[input]]
link = "b"
type = "udp"
listen = "127.0.0.1:0"

[output]
type = "udp"
send_to = "127.0.0.1:9"

[admin]
listen = "127.0.0.1:0"

[log]
format = "json"
"""
MONITOR = """
[monitor]
listen = "127.0.0.1:0"

[pair.orders]
egress = "http://{egress}"
action = "command"
pause_command = ["true"]
resume_command = ["true"]

[log]
format = "json"
"""
OF_PROMETHEUS = {"instance", "job", "alertname", "value"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def targets() -> list[dict[str, str]]:
    return [target for panel in dashboard()["panels"] for target in panel["targets"]]


@attrs.define
class Programs(Ends):
    """To start what has a file of its own."""

    command: str = ""

    @property
    def file(self) -> Path:
        return self.directory / f"{self.command}.toml"

    def run(self, command: str, text: str) -> End:
        self.command = command
        self.file.write_text(text)
        return self.start(command)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    try:
        yield programs
    finally:
        programs.close()


async def test_every_metric_and_label_is_one_that_a_running_end_shows(ends: Ends, programs: Programs) -> None:
    ends.configure(source='type = "generate"\nrate = "1 Mbit/s"', sink='type = "discard"')
    egress = await ends.egress()
    ingress = await ends.ingress()
    dedup = programs.run("dedup", DEDUP)
    monitor = programs.run("monitor", MONITOR.format(egress=await egress.admin()))
    await egress.until_status(lambda status: status["received"]["records"] > 0, "records arrive")
    names: set[str] = set()
    labels: set[str] = set(OF_PROMETHEUS)
    for end in (ingress, egress, dedup, monitor):
        for family in text_string_to_metric_families((await end.get("/metrics")).text):
            for sample in family.samples:
                names.add(sample.name)
                labels |= set(sample.labels)

    expressions = [rule["expr"] for rule in rules()] + [target["expr"] for target in targets()]
    used = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(used) > 20
    assert used <= names, sorted(used - names)

    texts = [text for rule in rules() for text in rule["annotations"].values()]
    texts += [target["legendFormat"] for target in targets()]
    shown = {label for text in texts for label in LABEL.findall(text)}
    assert {"link", "role", "reason", "pair", "input"} <= shown
    assert shown <= labels, sorted(shown - labels)


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 5
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    for panel in panels:
        assert panel["datasource"]["uid"] == "prometheus"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    source = yaml.safe_load((DASHBOARD.parent.parent / "provisioning/datasources/prometheus.yml").read_text())
    assert [each["uid"] for each in source["datasources"]] == ["prometheus"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_takes_the_rules_and_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [target["expr"].replace("$link", ".*") for target in targets()]
    of_dashboard = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": of_dashboard}]}))
    config = ROOT / "compose" / "prometheus" / "prometheus.yml"
    for command in (["check", "rules", str(RULES), str(file)], ["check", "config", "--syntax-only", str(config)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
