"""The command `gapconn dedup`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gapconn.commands.failures import exit_on_wrong_configuration
from gapconn.commands.files import FILE
from gapconn.commands.services import run_service


@click.command()
@FILE
@click.option("--check", "only_check", is_flag=True, help="Only say what is wrong with FILE.")
def dedup(file: Path, only_check: bool) -> None:
    """Make one topic of the copies that redundant links wrote.

    FILE is a configuration of its own, not that of a pair. Runs on the destination side, once: a second instance takes
    over, and the first one ends. SIGTERM or SIGINT ends it cleanly.

    \b
    Example:
      gapconn dedup --check dedup.toml
      gapconn dedup dedup.toml
    """
    from gapconn.dedup.config import load_dedup

    with exit_on_wrong_configuration():
        loaded = load_dedup(file, os.environ)
    if only_check:
        click.echo(f"{file}: " + click.style("ok", fg="green"))
        return
    from gapconn.dedup.serving import serve_dedup

    run_service(serve_dedup, loaded, log=loaded.log, name="dedup")
