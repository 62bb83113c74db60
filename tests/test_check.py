"""Several configurations side by side: what R1 forbids is refused with the reason, and what is legitimate is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gapconn.check import Report, check, facts, summary
from gapconn.config import Role
from gapconn.keys import create

Check = Callable[..., Report]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Checks texts as the files `1.toml`, `2.toml`, ..."""
    monkeypatch.chdir(tmp_path)

    def check_texts(*texts: str, role: Role | None = None, separate_hosts: bool = False) -> Report:
        paths = [Path(f"{number}.toml") for number, _ in enumerate(texts, 1)]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return check(paths, {}, role=role, separate_hosts=separate_hosts)

    return check_texts


def pair(name: str, address: str, *, link: str = "", source: str = 'type = "generate"', rest: str = "") -> str:
    return (
        f'[link]\nname = "{name}"\naddress = "{address}"\n{link}\n'
        f'[source]\n{source}\n[sink]\ntype = "discard"\n{rest}\n'
    )


def test_pairs_that_share_nothing(checked: Check) -> None:
    report = checked(pair("a", "10.0.0.1:7400"), pair("b", "10.0.0.1:7401"), pair("c", "10.0.0.2:7400"))
    assert report.problems == []
    assert [(str(path), checked_pair.link.name) for path, checked_pair in report.pairs] == [
        ("1.toml", "a"),
        ("2.toml", "b"),
        ("3.toml", "c"),
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("10.0.0.1:7400", "10.0.0.1:7400"),
        ("Egress.example:7400", "egress.example.:7400"),
        ("localhost:7400", "127.0.0.1:7400"),
        ("[::1]:7400", "localhost:7400"),
        ("[2001:db8::1]:7400", "[2001:DB8:0::1]:7400"),
    ],
)
def test_two_ingresses_on_one_egress(checked: Check, first: str, second: str) -> None:
    (problem,) = checked(pair("a", first), pair("b", second)).problems
    assert problem.startswith("1.toml and 2.toml: both send to ")
    assert "two ingresses on one egress, but every egress has exactly one ingress" in problem


def test_the_same_pair_twice(checked: Check) -> None:
    (problem,) = checked(pair("a", "h:1"), pair("a", "h:1")).problems
    assert problem == (
        "1.toml and 2.toml: both are link 'a': two ingresses on one egress, but every egress has exactly one ingress"
    )


def test_one_ingress_for_two_egresses(checked: Check) -> None:
    (problem,) = checked(pair("a", "h:1"), pair("a", "h:2")).problems
    assert "both are link 'a', to h:1 and to h:2: one ingress for two egresses" in problem


def test_two_names_with_one_id(checked: Check) -> None:
    (problem,) = checked(pair("a", "h:1", link="id = 5"), pair("b", "h:2", link="id = 5")).problems
    assert "links 'a' and 'b' have the same id 5" in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("h:1", "10.0.0.1:7400"), ("h:2", "10.0.0.1:7400")),
        (("h:1", "10.0.0.1:7400"), ("g:1", "10.0.0.1:7400")),
        (("h:1", "0.0.0.0:7400"), ("h:2", "10.0.0.1:7400")),
        (("h:7400", None), ("h:1", "0.0.0.0:7400")),
        (("h:1", "[::]:7400"), ("h:2", "0.0.0.0:7400")),
    ],
)
def test_egresses_that_would_listen_on_one_port(
    checked: Check, first: tuple[str, str | None], second: tuple[str, str | None]
) -> None:
    texts = [
        pair(name, address, link=f'bind = "{bind}"' if bind else "")
        for name, (address, bind) in zip("ab", (first, second), strict=True)
    ]
    (problem,) = checked(*texts).problems
    assert "both egresses would listen on port 7400 of one host" in problem
    assert "--separate-hosts" in problem
    assert checked(*texts, separate_hosts=True).problems == []


def test_containers_that_all_listen_on_the_same_wildcard(checked: Check) -> None:
    bind = 'bind = "0.0.0.0:7400"'
    assert checked(pair("a", "egress-a:7400", link=bind), pair("b", "egress-b:7400", link=bind)).problems == []


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (
            'type = "udp"\nlisten = "0.0.0.0:514"',
            'type = "udp"\nlisten = "10.0.0.9:514"',
            "both would take udp data on",
        ),
        ('type = "tcp"\nlisten = "h:1"', 'type = "tcp"\nlisten = "H:1"', "both would take tcp data on H:1"),
        (
            'type = "files"\ndirectory = "/out"',
            'type = "files"\ndirectory = "/out/"',
            "both would take files from /out/: one source for two egresses",
        ),
        (
            'type = "files"\ndirectory = "/out"',
            'type = "files"\ndirectory = "/a/../out/b"',
            "both would take files from",
        ),
        (
            'type = "files"\ndirectory = "/a"\nstate_file = "/s"',
            'type = "files"\ndirectory = "/b"\nstate_file = "/s"',
            "both would remember their files in /s",
        ),
    ],
)
def test_one_source_for_two_egresses(checked: Check, first: str, second: str, problem: str) -> None:
    sink = 'type = "discard"'
    texts = [
        f'[link]\nname = "{name}"\naddress = "{name}:1"\n[source]\n{source}\n[sink]\n{sink}'
        for name, source in (("a", first), ("b", second))
    ]
    (found,) = checked(*texts).problems
    assert problem in found
    assert checked(*texts, separate_hosts=True).problems == []
    assert checked(*texts, role=Role.EGRESS).problems == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('type = "udp"\nlisten = "0.0.0.0:514"', 'type = "udp"\nlisten = "0.0.0.0:515"'),
        ('type = "udp"\nlisten = "0.0.0.0:514"', 'type = "tcp"\nlisten = "0.0.0.0:514"'),
        ('type = "udp"\nlisten = "10.0.0.1:514"', 'type = "udp"\nlisten = "10.0.0.2:514"'),
        ('type = "udp"\nlisten = "10.0.0.1:0"', 'type = "udp"\nlisten = "10.0.0.1:0"'),
        ('type = "files"\ndirectory = "/out"', 'type = "files"\ndirectory = "/outer"'),
        # Members of one consumer group (R8).
        *[('type = "kafka"\nbootstrap_servers = "k:1"\ntopics = ["a"]\ngroup_id = "g"',) * 2],
    ],
)
def test_sources_that_may_run_side_by_side(checked: Check, first: str, second: str) -> None:
    assert checked(pair("a", "a:1", source=first), pair("b", "b:1", source=second)).problems == []


def test_admin_endpoints_on_one_port(checked: Check) -> None:
    admin = '[admin]\nlisten = "127.0.0.1:9464"'
    other = '[admin]\nlisten = "0.0.0.0:9464"'
    (problem,) = checked(pair("a", "a:1", rest=admin), pair("b", "b:1", rest=other)).problems
    assert "both would serve [admin] on 0.0.0.0:9464" in problem
    assert checked(pair("a", "a:1", rest=admin), pair("b", "b:1")).problems == []


def test_files_that_are_wrong_alone_are_all_reported(checked: Check) -> None:
    report = checked("[link]\nname = 1", pair("a", "h:1"), "", pair("b", "h:1"))
    assert [problem.split(": ")[0] for problem in report.problems] == [
        "1.toml",
        "1.toml",
        "3.toml",
        "2.toml and 4.toml",
    ]
    assert [str(path) for path, _ in report.pairs] == ["2.toml", "4.toml"]


def test_the_environments_problems_are_said_once(tmp_path: Path) -> None:
    paths = [tmp_path / "1.toml", tmp_path / "2.toml"]
    for number, path in enumerate(paths):
        path.write_text(pair(f"n{number}", f"h:{number + 1}"))
    assert len(check(paths, {"GAPCONN_NONSENSE": "1"}).problems) == 1


def test_summary(checked: Check) -> None:
    source = 'type = "kafka"\nbootstrap_servers = "k:9092"\ntopics = ["a"]\ngroup_id = "g"\nclient = { x = "hunter2" }'
    report = checked(pair("a", "127.0.0.1:7400", link='bind = "0.0.0.0:7400"\nid = 7', source=source, rest="[admin]"))
    ((_, checked_pair),) = report.pairs
    lines = summary(checked_pair)
    assert lines[:4] == [
        'source  kafka: bootstrap_servers = "k:9092", topics = ["a"], group_id = "g", client = "***"',
        "link    a: to 127.0.0.1:7400, listening on 0.0.0.0:7400, rate 1 Gbit/s, MTU 1500, repair 5%, "
        "heartbeat every 1s, id 7",
        "sink    discard",
        "admin   http://127.0.0.1:9464",
    ]
    assert "GAPCONN_ADMIN_LISTEN" in lines[4]


def test_a_source_directory_that_is_not_there_is_a_note(checked: Check, tmp_path: Path) -> None:
    text = (
        f'[link]\nname = "a"\naddress = "h:1"\n[source]\ntype = "files"\ndirectory = "{tmp_path}/out"\n'
        f'[sink]\ntype = "files"\ndirectory = "{tmp_path}/in"\n'
    )
    note = f"note    source.directory '{tmp_path}/out' does not exist on this host; the ingress needs it"
    for role, expected in ((None, [note]), (Role.INGRESS, [note]), (Role.EGRESS, [])):
        report = checked(text, role=role)
        assert report.problems == []
        assert [line for line in summary(report.pairs[0][1]) if line.startswith("note")] == expected
    (tmp_path / "out").mkdir()
    assert not [line for line in summary(checked(text).pairs[0][1]) if line.startswith("note")]


def test_a_variable_of_the_other_end(checked: Check) -> None:
    text = (
        '[link]\nname = "a"\naddress = "h:1"\n[source]\ntype = "udp"\nlisten = "${LISTEN}"\n[sink]\ntype = "discard"\n'
    )
    (problem,) = checked(text).problems
    assert problem == (
        "1.toml: source.listen: the environment variable 'LISTEN' is not set, but ${LISTEN} needs it"
        " (to check the file for the other end only: --role egress)"
    )
    assert checked(text, role=Role.EGRESS).problems == []
    (problem,) = checked(text, role=Role.INGRESS).problems
    assert "--role" not in problem


def test_facts_hide_secrets(checked: Check) -> None:
    source = 'type = "kafka"\nbootstrap_servers = "k:1"\ntopics = ["a"]\ngroup_id = "g"\nclient = { x = "hunter2" }'
    ((_, checked_pair),) = checked(pair("a", "h:1", source=source)).pairs
    known = facts(checked_pair)
    assert known["source"]["client"] == "***"
    assert "hunter2" not in str(known)
    assert (known["link"]["address"], known["link"]["rate"], known["sink"], known["admin"]) == (
        "h:1",
        10**9,
        {"type": "discard"},
        None,
    )


def test_the_key_file_is_read_as_at_a_start(checked: Check, tmp_path: Path) -> None:
    link = '[link.security]\nmode = "aes-256-gcm"\nkey_file = "a.key"'
    text = pair("a", "10.0.0.1:7400", link=link)
    (problem,) = checked(text).problems
    assert problem.startswith("1.toml: link.security.key_file: a.key: there is no such key file; make one by: gapconn")
    create(tmp_path / "a.key")
    report = checked(text)
    assert report.problems == []
    assert "sealed by aes-256-gcm" in summary(report.pairs[0][1])[1]
    assert facts(report.pairs[0][1])["link"]["security"]["key_file"] == "a.key"
    (tmp_path / "a.key").chmod(0o644)
    (problem,) = checked(text, role=Role.EGRESS).problems
    assert "others may read or change this key file (mode 0644): chmod 600 a.key" in problem


def test_two_pairs_are_not_the_same_static_member_of_a_group(checked: Check) -> None:
    def kafka(group: str, member: str) -> str:
        named = f'\ngroup_instance_id = "{member}"' if member else ""
        return f'type = "kafka"\nbootstrap_servers = "k:9092"\ntopics = ["t"]\ngroup_id = "{group}"{named}'

    def problems(*sources: str) -> list[str]:
        texts = [pair(f"p{n}", f"10.0.0.1:{7400 + n}", source=source) for n, source in enumerate(sources)]
        return checked(*texts, separate_hosts=False).problems

    (problem,) = problems(kafka("g", "one"), kafka("g", "one"))
    assert "both would be member 'one' of group 'g'" in problem
    assert problems(kafka("g", "one"), kafka("g", "two"), kafka("h", "one"), kafka("g", ""), kafka("g", "")) == []


def test_the_token_file_is_looked_at_where_the_ingress_is(checked: Check) -> None:
    token = Path("token")
    token.touch(mode=0o600)
    token.write_text("too short")
    text = pair("a", "10.0.0.1:7400", rest='[admin]\ntoken_file = "token"')
    (problem,) = checked(text).problems
    assert problem.startswith("1.toml: admin.token_file: token: not a token")
    assert checked(text, role=Role.EGRESS).problems == []
    token.unlink()
    assert checked(text).problems == [], "it need not be on the egress's host"
    (problem,) = checked(text, role=Role.INGRESS).problems
    assert "there is no such token file; make one by" in problem
