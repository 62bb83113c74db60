"""`gapconn/protocol/registry.py` says what `spec/registry.toml` says, both ways."""

from __future__ import annotations

import enum
import re
import tomllib

import pytest

from gapconn.protocol import registry
from tests.spec.requirements import SPEC

TOML = tomllib.loads((SPEC / "registry.toml").read_text())
ENUMS: dict[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "types": registry.DatagramType,
    "flags": registry.Flag,
    "security_modes": registry.SecurityMode,
    "phases": registry.Phase,
    "message_kinds": registry.MessageKind,
    "compressions": registry.Compression,
    "drop_reasons": registry.DropReason,
    "loss_causes": registry.LossCause,
}


def test_every_constant_is_in_both() -> None:
    in_code = {name.lower(): value for name, value in vars(registry).items() if isinstance(value, int)}
    in_toml = {name: value for name, value in TOML.items() if isinstance(value, int)} | TOML["limits"]
    assert in_code == in_toml


@pytest.mark.parametrize("table", ENUMS)
def test_every_name_and_value_is_in_both(table: str) -> None:
    assert {name.lower(): member.value for name, member in ENUMS[table].__members__.items()} == {
        entry["name"]: entry["value"] for entry in TOML[table]
    }
    values = [entry["value"] for entry in TOML[table]]
    assert values == sorted(set(values)), "the order of the table is that of the values, each used once"


def test_no_enum_and_no_table_is_left_out() -> None:
    in_code = {value for value in vars(registry).values() if isinstance(value, enum.EnumType)} - {
        enum.IntEnum,
        enum.IntFlag,
    }
    assert in_code == set(ENUMS.values())
    assert {name for name, value in TOML.items() if isinstance(value, list)} == set(ENUMS)


def test_the_text_names_only_reasons_and_causes_that_exist() -> None:
    known = {name.lower() for table in ("drop_reasons", "loss_causes") for name in ENUMS[table].__members__}
    named = {
        (path.name, name) for path in SPEC.glob("*.md") for name in re.findall(r"\(`([a-z_]+)`\)", path.read_text())
    }
    assert {name for _, name in named} == known - {"gap"}, named
