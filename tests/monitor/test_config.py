"""The file of a monitor: the example is valid, and whatever is wrong is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapconn.errors import ConfigError
from gapconn.monitor.config import load_monitor

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "examples" / "monitor" / "monitor.toml"
TOKEN = "0123456789abcdef0123456789abcdef"


def write(directory: Path, text: str) -> Path:
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    file = directory / "monitor.toml"
    file.write_text(text.replace("TOKEN", str(token)))
    return file


def test_the_example_is_valid(tmp_path: Path) -> None:
    settings = load_monitor(write(tmp_path, EXAMPLE.read_text().replace("/etc/gapconn/token", "TOKEN")), {})
    assert [pair.name for pair in settings.pairs] == ["orders-a", "orders-b"]
    assert settings.pairs[0].token == TOKEN
    assert TOKEN not in repr(settings)
    # The goal: an egress that dies is noticed, and its ingress told, within 3 s.
    hanging_s = settings.monitor.interval + settings.monitor.failures * settings.monitor.deadline
    assert hanging_s <= 2.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no pair to watch"),
        ("[pair.a]", "pair.a.egress: missing"),
        ('[pair.a]\negress = "10.0.0.1:9464"', "pair.a.egress: not a URL"),
        ('[pair.a]\negress = "http://e:1"', 'action = "http" needs ingress and token_file'),
        ('[pair.a]\negress = "http://e:1"\naction = "command"', "needs pause_command and resume_command"),
        ('[pair.a]\negress = "http://e:1"\naction = "webhook"', "needs action_url"),
        ('[pair.a]\negress = "http://e:1"\naction = "stop"', 'allowed: "http", "command", "webhook"'),
        (
            '[pair.a]\negress = "http://e:1"\naction = "webhook"\naction_url = "http://w"\ngap_reports = true',
            "gap_reports needs ingress and token_file",
        ),
        ('[pair.a]\negress = "http://e:1"\ningress = "http://i:1"\ntoken_file = "/nowhere"', "no such token file"),
        (
            '[pair.a]\negress = "http://e:1"\ningress = "http://i:1"\ntoken_file = "TOKEN"\n'
            '[pair.b]\negress = "http://e:1"\ningress = "http://i:2"\ntoken_file = "TOKEN"',
            "http://e:1 is there twice",
        ),
        ("[monitor]\nfailures = 0", "allowed: 1 to 100"),
        ("[monitor]\nintervall = 1", "did you mean"),
        ("[pair]\na = 1", "not a table"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_monitor(write(tmp_path, text), {})
    assert words in "\n".join(caught.value.problems)


def test_the_environment_overrides(tmp_path: Path) -> None:
    text = '[pair.a]\negress = "http://e:1"\ningress = "http://i:1"\ntoken_file = "TOKEN"'
    settings = load_monitor(write(tmp_path, text), {"GAPCONN_MONITOR_NAME": "other"})
    assert settings.monitor.name == "other"
