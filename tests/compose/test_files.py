"""The files of the stacks, as far as they can be checked without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gapconn.check import check

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "compose"
STACKS = sorted(path.parent for path in COMPOSE.glob("*/docker-compose.yml"))
ENDS = re.compile(r"(ingress|egress|gap)-(\w+)")


def services(stack: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((stack / "docker-compose.yml").read_text())["services"]
    return found


def test_all_stacks_are_there() -> None:
    assert [path.name for path in STACKS] == ["cold-standby", "multi-pair", "redundant", "sharded", "single"]


@pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.name)
def test_the_pairs_of_a_stack_may_run_side_by_side(stack: Path) -> None:
    files = sorted(stack.glob("pair-*.toml"))
    report = check(files, {}, separate_hosts=True)
    assert report.problems == []
    assert len(report.pairs) == len(files) >= 1


@pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.name)
def test_every_pair_has_an_ingress_a_gap_and_an_egress_of_its_own(stack: Path) -> None:
    found = services(stack)
    pairs = [path.stem.removeprefix("pair-") for path in sorted(stack.glob("pair-*.toml"))]
    assert sorted(name for name in found if ENDS.fullmatch(name)) == sorted(
        f"{end}-{pair}" for end in ("ingress", "gap", "egress") for pair in pairs
    )
    for pair in pairs:
        into, out = found[f"gap-{pair}"]["command"]
        networks = found[f"gap-{pair}"]["networks"]
        # It listens on the source side only, and its target is this pair's egress: nothing comes back through it.
        assert into == networks["gap-in"]["ipv4_address"] + ":7400"
        assert out == found[f"egress-{pair}"]["networks"]["gap-out"]["ipv4_address"] + ":7400"
        for end in ("ingress", "egress"):
            assert f"./pair-{pair}.toml:/etc/gapconn/pair.toml:ro" in found[f"{end}-{pair}"]["volumes"]


@pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.name)
def test_no_network_of_the_source_side_reaches_the_destination_side(stack: Path) -> None:
    document = yaml.safe_load((stack / "docker-compose.yml").read_text())
    assert document["networks"]["gap-in"]["internal"] is True
    assert document["networks"]["gap-out"]["internal"] is True
    common = yaml.safe_load((COMPOSE / "common.yml").read_text())["services"]
    sides = {"source": "source", "gap-in": "source", "destination": "destination", "gap-out": "destination"}
    for name, service in document["services"].items():
        networks = service.get("networks") or common[service["extends"]["service"]].get("networks", [])
        crossed = {sides[network] for network in networks}
        if len(crossed) > 1:
            assert name.startswith("gap-") or name in ("monitor", "prometheus"), f"{name} is on both sides"
            hardened = {**common[service["extends"]["service"]], **service}
            assert hardened["sysctls"] == {"net.ipv4.ip_forward": 0}


@pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.name)
def test_prometheus_asks_every_end(stack: Path) -> None:
    targets = [target for group in yaml.safe_load((stack / "targets.yml").read_text()) for target in group["targets"]]
    found = services(stack)
    assert {target.partition(":")[0] for target in targets} <= set(found)
    assert {name for name in found if ENDS.fullmatch(name) and not name.startswith("gap-")} <= {
        target.removesuffix(":9464") for target in targets
    }


@pytest.mark.parametrize("stack", STACKS, ids=lambda path: path.name)
def test_each_stack_says_what_to_break_and_what_to_see(stack: Path) -> None:
    page = (stack / "README.md").read_text()
    assert "docker-compose up -d" in page
    assert "## Break it" in page
    for service in re.findall(
        r"docker-compose (?:kill|pause|restart|stop|start|logs)(?: -\S+(?: \w+)?)*((?: [a-z-]+)+)", page
    ):
        assert set(service.split()) <= set(services(stack)), service
