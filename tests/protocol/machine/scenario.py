"""Runs of a `World`, written down: each file of `tests/protocol/scenarios` is one that went wrong once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from tests.protocol.machine.world import SENT_MESSAGE_BYTES_MAX, Step, World

SCENARIOS = Path(__file__).parent.parent / "scenarios"


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of `World`."""

    reassembly_bytes_max: int = 1 << 20
    message_bytes_max: int = SENT_MESSAGE_BYTES_MAX
    burst_max: int = 64
    repair_share: int = 0
    sealed: bool = False
    available: bool = False


class Scenario(msgspec.Struct, forbid_unknown_fields=True):
    """A run as its file has it."""

    about: str
    """What it shows, in one sentence."""
    requirements: list[str]
    """What it breaks where it goes wrong; the first is the one that names it."""
    world: Limits
    """What is not as usual in it."""
    steps: list[Step]
    reaches: list[str] = []
    """What must happen in it, so that it goes on showing what it is about."""


def scenarios() -> dict[str, Scenario]:
    """All scenarios, by file name."""
    read = msgspec.json.Decoder(Scenario).decode
    return {path.stem: read(path.read_bytes()) for path in sorted(SCENARIOS.glob("*.json"))}


def play(scenario: Scenario) -> World:
    """Run a scenario to its end, within `small_limits`, and settle what is owed; the world as it then is."""
    world = World(**msgspec.structs.asdict(scenario.world))
    for name, arguments in scenario.steps:
        getattr(world, name)(**arguments)
    world.settle()
    return world


def written_down(world_arguments: dict[str, Any], steps: list[Step]) -> str:
    """A failed run, as the beginning of a new scenario file."""
    lines = ",\n    ".join(json.dumps(step) for step in steps)
    return f'{{\n  "world": {json.dumps(world_arguments)},\n  "steps": [\n    {lines}\n  ]\n}}'
