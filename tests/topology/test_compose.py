"""Compose files: each wrong topology is refused with file, key and remedy, and a right one is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gapconn.check import Report
from gapconn.topology.check import check_all
from tests.topology.pairs import pair

Check = Callable[..., Report]

RIGHT = """\
x-gapconn: &gapconn
  image: gapconn:${VERSION:-latest}
  restart: always
services:
  ingress-a:
    <<: *gapconn
    command: [gapconn, ingress, /etc/gapconn/pair.toml]
    volumes: ["./a.toml:/etc/gapconn/pair.toml:ro", "ingress-a:/var/lib/gapconn"]
    ports: ["127.0.0.1:9464:9464"]
  egress-a:
    <<: *gapconn
    command: egress /etc/gapconn/pair.toml
    volumes: ["./a.toml:/etc/gapconn/pair.toml:ro", "egress-a:/var/lib/gapconn"]
    ports: ["7400:7400/udp", "127.0.0.1:9465:9464"]
  ingress-b:
    <<: *gapconn
    entrypoint: ["sh", "-c", "exec gapconn ingress /config/b.toml"]
    volumes: [{type: bind, source: ., target: /config}, "ingress-b:/var/lib/gapconn"]
  egress-b:
    <<: *gapconn
    command: [egress, /b.toml]
    configs: [{source: pair-b, target: /b.toml}]
    volumes: ["egress-b:/var/lib/gapconn"]
    environment: [SECRET]
    ports: [{target: 7400, published: "7401", protocol: udp}]
    deploy: {replicas: 1, restart_policy: {condition: any}}
  broker:
    image: apache/kafka:4.1.0
    scale: 3
    command: [ingress, something else]
configs:
  pair-b: {file: b.toml}
volumes: {ingress-a: {}, egress-a: {}, ingress-b: {}, egress-b: {}}
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Checks a text as `compose.yaml`, beside the pair files `a.toml` and `b.toml`, or others."""
    monkeypatch.chdir(tmp_path)

    def check(text: str, *, file: str = "compose.yaml", **pairs: str) -> Report:
        given = {"a": pair("a", "egress-a:7400"), "b": pair("b", "egress-b:7400"), **pairs}
        for name, content in given.items():
            Path(f"{name}.toml").write_text(content)
        Path(file).write_text(text)
        return check_all([Path(file)], {})

    return check


def test_a_right_one(checked: Check) -> None:
    report = checked(RIGHT, b=pair("b", "egress-b:7400", sink='type = "udp"\nsend_to = "h:${SECRET}"'))
    assert (report.problems, report.warnings) == ([], [])
    assert report.ends == [
        "services.ingress-a in compose.yaml: the ingress of link 'a'",
        "services.egress-a in compose.yaml: the egress of link 'a'",
        "services.ingress-b in compose.yaml: the ingress of link 'b'",
        "services.egress-b in compose.yaml: the egress of link 'b'",
    ]


A_TWICE = """\
  egress-a2:
    <<: *gapconn
    command: [egress, /pair.toml]
    volumes: ["./a.toml:/pair.toml", "egress-a2:/var/lib/gapconn"]
"""

WRONG: dict[str, tuple[str, str, list[list[str]]]] = {
    "scaled": (
        '    ports: ["127.0.0.1:9464:9464"]\n',
        "    scale: 2\n",
        [["compose.yaml: services.ingress-a.scale: 2 instances of the ingress of link 'a'", "make it 1"]],
    ),
    "replicas": (
        "replicas: 1",
        "replicas: 3",
        [["compose.yaml: services.egress-b.deploy.replicas: 3 instances of the egress of link 'b'", "make it 1"]],
    ),
    "replicas by a variable": ("replicas: 1", 'replicas: "${REPLICAS:-2}"', [["deploy.replicas: 2 instances"]]),
    "one on each node": ("replicas: 1", "mode: global", [["services.egress-b.deploy.mode", "make it replicated"]]),
    "two during an update": (
        "replicas: 1",
        "update_config: {order: start-first}",
        [["services.egress-b.deploy.update_config.order", "make it stop-first"]],
    ),
    "the same host port": (
        '["7400:7400/udp", "127.0.0.1:9465:9464"]',
        '["7400-7402:7400-7402/udp"]',
        [["services.egress-b.ports[0]: services.egress-b takes host port 7401/udp, and so does services.egress-a"]],
    ),
    "the same host port on one of its addresses": (
        '"127.0.0.1:9465:9464"',
        '"9464:9464"',
        [["services.egress-a.ports[1]: services.egress-a takes host port 9464/tcp, and so does services.ingress-a"]],
    ),
    "one end of one pair twice": (
        "  broker:\n",
        f"{A_TWICE}  broker:\n",
        [
            [
                "compose.yaml: services.egress-a2: runs the egress of link 'a' with a.toml, and so does"
                " services.egress-a: an ingress has one egress; remove one of them, or give it a pair file of its own",
            ],
        ],
    ),
    "one directory for the state of one end": (
        "  broker:\n",
        A_TWICE.replace("egress-a2:/var", "egress-a:/var") + "  broker:\n",
        [
            ["services.egress-a2: runs"],
            ["services.egress-a2: keeps the state of the egress of link 'a' in volume egress-a of project "],
        ],
    ),
    "a pair file that is not there": (
        './a.toml:/etc/gapconn/pair.toml:ro", "ingress-a',
        './gone.toml:/etc/gapconn/pair.toml:ro", "ingress-a',
        [["gone.toml: there is no such file"]],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_one(case: str, checked: Check) -> None:
    old, new, expected = WRONG[case]
    assert RIGHT.count(old) == 1
    report = checked(RIGHT.replace(old, new))
    assert len(report.problems) == len(expected), report.problems
    for problem, fragments in zip(report.problems, expected, strict=True):
        for fragment in fragments:
            assert fragment in problem


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (pair("a", "x:1"), pair("a", "y:1"), "a.toml and b.toml: link: both are link 'a', to x:1 and to y:1"),
        (pair("a", "x:1"), pair("b", "x:1"), "a.toml and b.toml: link: both send to x:1: two ingresses on one egress"),
        (pair("a", "x:1", "id = 7"), pair("b", "y:1", "id = 7"), "links 'a' and 'b' have the same id 7"),
    ],
)
def test_pair_files_that_do_not_go_together(a: str, b: str, words: str, checked: Check) -> None:
    (problem,) = checked(RIGHT, a=a, b=b).problems
    assert words in problem


def test_ends_that_share_a_network(checked: Check) -> None:
    text = RIGHT.replace("  restart: always\n", "  restart: always\n  network_mode: host\n")
    a = pair("a", "h:7400", 'bind = "0.0.0.0:7400"')
    (problem,) = checked(text, a=a, b=pair("b", "g:1", 'bind = "10.0.0.1:7400"')).problems
    assert problem == (
        "compose.yaml: services.egress-b: listens on 10.0.0.1:7400, and so does services.egress-a on the same host; "
        "give one of them a link.bind or link.address of its own"
    )
    assert checked(text, a=a, b=pair("b", "g:1", 'bind = "10.0.0.1:7401"')).problems == []
    assert checked(RIGHT, a=a, b=pair("b", "g:1", 'bind = "0.0.0.0:7400"')).problems == [], "each has its own network"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  restart: always\n", "", "services.ingress-a.restart: nobody starts the ingress of link 'a' again"),
        ("  restart: always\n", '  restart: "no"\n', "services.egress-a.restart: nobody starts the egress of link 'a'"),
        ("./a.toml:/etc/gapconn/pair.toml:ro", "etc:/etc/gapconn", "reads /etc/gapconn/pair.toml, which is in no file"),
        ("command: egress /etc/gapconn/pair.toml", "command: x", "services.ingress-a: the ingress of link 'a' is here, "
         "and its egress is not"),
    ],
)  # fmt: skip
def test_what_is_only_doubtful(old: str, new: str, words: str, checked: Check) -> None:
    report = checked(RIGHT.replace(old, new))
    assert report.problems == []
    assert any(words in warning for warning in report.warnings), report.warnings


def test_services_in_the_network_of_another(checked: Check) -> None:
    admin = '[admin]\nlisten = "0.0.0.0:9464"'
    a = pair("a", "h:7400", 'bind = "0.0.0.0:7400"', sink=f'type = "discard"\n{admin}')
    text = RIGHT.replace("  egress-a:\n", "  egress-a:\n    network_mode: service:ingress-a\n")
    (problem,) = checked(text, a=a).problems
    assert (
        "services.egress-a: shares a host with services.ingress-a, and both would serve [admin] on 0.0.0.0" in problem
    )
    assert checked(RIGHT, a=a).problems == []


def test_services_that_extend_others(checked: Check, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/base.yaml").write_text(
        "services:\n"
        "  end: {image: gapconn, restart: always, deploy: {replicas: 2}, environment: {GAPCONN_LINK_RATE: 2 Gbit/s}}\n"
        "  egress: {extends: end, command: [egress, /p/a.toml], volumes: ['../:/p']}\n"
    )
    text = "services: {out: {extends: {file: common/base.yaml, service: egress}, environment: {GAPCONN_LINK_ID: '9'}}}"
    report = checked(text)
    (problem,) = report.problems
    assert "services.out.deploy.replicas: 2 instances of the egress of link 'a'" in problem
    assert report.warnings == [
        "compose.yaml: services.out: the egress of link 'a' is here, and its ingress is not; "
        "if the ingress runs elsewhere, check both files together"
    ]


def test_volumes_of_other_projects_and_tags_of_compose(checked: Check, tmp_path: Path) -> None:
    assert checked(RIGHT.replace("scale: 3", "ports: !override ['1:1']\n    links: !reset []")).problems == []
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.toml").write_text(pair("c", "egress-c:7400"))
    service = (
        "{command: [egress, /a.toml], restart: always, volumes: ['./a.toml:/a.toml', 'egress-a:/var/lib/gapconn']}"
    )
    (other / "compose.yaml").write_text(f"services: {{egress-a: {service}}}")
    assert check_all([Path("compose.yaml"), other / "compose.yaml"], {}).problems == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: [", "compose.yaml: not YAML"),
        ("hello: 1", "neither a Compose file (no section services) nor Kubernetes manifests"),
        ("services: {a: {extends: {service: gone}}}", "services.gone: no service that can be read"),
        ("services: {a: {extends: a}}", "services.a: no service that can be read"),
    ],
)
def test_what_cannot_be_read(text: str, words: str, checked: Check) -> None:
    (problem,) = checked(text).problems
    assert words in problem


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = check_all([tmp_path / "gone.yml"], {}).problems
    assert "gone.yml: cannot be read: No such file" in problem
