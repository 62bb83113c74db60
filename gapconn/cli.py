"""The command `gapconn`.

Exit codes: 0 a clean end, 1 a failure at run time, 2 a wrong configuration or usage. Messages go to standard error.
What a command needs is imported inside it, so that `gapconn --version` does not load a Kafka client.
"""

from __future__ import annotations

from pathlib import Path

import click

from gapconn import __version__
from gapconn.commands.bench import bench
from gapconn.commands.check import check
from gapconn.commands.control import monitor, pause, resume
from gapconn.commands.dedup import dedup
from gapconn.commands.demo import demo
from gapconn.commands.files import FILE
from gapconn.commands.gaps import gaps, resend
from gapconn.commands.keys import keygen
from gapconn.commands.services import run_end
from gapconn.commands.why import why


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gapconn", message="%(prog)s %(version)s")
def main() -> None:
    """Carry Kafka topics, UDP, TCP and files across a one-way network gap.

    One TOML file describes a link pair and is read by both ends. An ingress has exactly one egress, and an egress
    exactly one ingress.

    \b
    Example:
      gapconn check pair.toml      before anything else
      gapconn egress pair.toml     on the destination side
      gapconn ingress pair.toml    on the source side
      gapconn why pair.toml        where data is lost, and what to do
      gapconn dedup dedup.toml     one copy of what redundant links bring
      gapconn demo                 see it work, on this machine
      gapconn bench --help         measure what rate the link holds

    Every key of the file can be overridden by an environment variable GAPCONN_<SECTION>_<KEY>, for example
    GAPCONN_LINK_RATE="2 Gbit/s".

    Exit codes: 0 clean end, 1 failure at run time, 2 wrong configuration or usage.
    """


@main.command()
@FILE
def ingress(file: Path) -> None:
    """Take data from the source and send it into the gap.

    FILE is the pair's configuration; its section [source] is read here. SIGTERM or SIGINT ends it cleanly: what was
    taken is sent, and acknowledged to the source.

    \b
    Example:
      gapconn ingress pair.toml
    """
    from gapconn.service import serve_ingress

    run_end(serve_ingress, file, "ingress")


@main.command()
@FILE
def egress(file: Path) -> None:
    """Receive from the gap and hand the data to the sink.

    FILE is the pair's configuration; its section [sink] is read here. SIGTERM or SIGINT ends it cleanly: what arrived
    whole is handed to the sink.

    When both ends run on one host and the file has a section [admin], one of them needs another port.

    \b
    Example:
      gapconn egress pair.toml
      GAPCONN_ADMIN_LISTEN=127.0.0.1:9465 gapconn egress pair.toml
    """
    from gapconn.service import serve_egress

    run_end(serve_egress, file, "egress")


for command in (bench, check, dedup, demo, gaps, keygen, monitor, pause, resend, resume, why):
    main.add_command(command)
