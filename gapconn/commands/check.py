"""The command `gapconn check`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from gapconn.commands.failures import EXIT_USAGE, print_problems
from gapconn.commands.files import PATH


@click.command()
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@click.option(
    "--role",
    type=click.Choice(["ingress", "egress"]),
    help="Read the files as this end does: the other end's section, its plugins and its secrets need not exist.",
)
@click.option(
    "--separate-hosts",
    is_flag=True,
    help="Every end has a host or container of its own, so ports and directories may be the same.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(files: tuple[Path, ...], role: str | None, separate_hosts: bool, as_json: bool) -> None:
    """Check configurations, and say what they do.

    Several files are those of pairs that run at the same time; a directory stands for the pair files in it. Two
    ingresses on one egress, one ingress for two egresses, and pairs that share a name, an id, an address or a source
    are refused. The files of monitors and deduplicators in a directory are checked too, and what is left out is said.

    A Compose file, or rendered Kubernetes manifests, are checked for what would run: ends that would run twice, ports
    and state that two would share, egresses behind a Service with several endpoints. Warnings do not count as wrong.

    \b
    Example:
      gapconn check pair.toml
      gapconn check links/
      gapconn check docker-compose.yml
      helm template gapconn kubernetes/gapconn > all.yaml; gapconn check all.yaml
    """
    from gapconn.check import facts, summary
    from gapconn.config import Role
    from gapconn.topology.check import check_all

    report = check_all(files, os.environ, role=Role(role) if role else None, separate_hosts=separate_hosts)
    if as_json:
        pairs = [{"file": str(path), **facts(pair)} for path, pair in report.pairs]
        verdict = {"ok": not report.problems, "problems": report.problems, "warnings": report.warnings}
        rest = {"ends": report.ends, "others": report.others, "left_out": report.left_out}
        click.echo(json.dumps({**verdict, "pairs": pairs, **rest}, indent=2))
    else:
        for line in report.left_out:
            click.echo(f"{click.style('left out:', fg='yellow')} {line}", err=True)
        for warning in report.warnings:
            click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
        print_problems(report.problems)
    if not as_json and not report.problems:
        for path, pair in report.pairs:
            click.echo(f"{path}: " + click.style("ok", fg="green"))
            for line in summary(pair):
                click.echo(f"  {line}")
        for each in [*report.others, *report.ends]:
            click.echo(f"{each}: " + click.style("ok", fg="green"))
    if report.problems:
        sys.exit(EXIT_USAGE)
