"""The command `gapconn keygen`."""

from __future__ import annotations

from pathlib import Path

import click

from gapconn.commands.failures import exit_on_wrong_configuration
from gapconn.commands.files import FILE


@click.command()
@FILE
@click.option("--add", is_flag=True, help="Put a further key into FILE. Nothing is sealed with it yet.")
@click.option("--use", "use_id", metavar="ID", type=int, help="From now on the ingress seals with key ID.")
@click.option("--remove", "remove_id", metavar="ID", type=int, help="Take key ID out of FILE.")
@click.option("--show", is_flag=True, help="Only show the ids and fingerprints of the keys in FILE.")
def keygen(file: Path, add: bool, use_id: int | None, remove_id: int | None, show: bool) -> None:
    """Make a key file for a sealed link, or change one.

    Without an option FILE is made anew, with mode 0600; a file that exists is left as it is. Both ends need the file:
    carry it to the other one by hand, and compare the fingerprints. Secrets are never shown.

    To change the key without a stop: --add, carry FILE to the egress, then --use the new id at the ingress, then
    --remove the old one at both. Running ends notice the change within two seconds.

    \b
    Example:
      gapconn keygen orders.key
      gapconn keygen --add orders.key
      gapconn keygen --use 2 orders.key
      gapconn keygen --remove 1 orders.key
    """
    from gapconn import keys

    if sum((add, use_id is not None, remove_id is not None, show)) > 1:
        raise click.UsageError("only one of --add, --use, --remove and --show at a time")
    with exit_on_wrong_configuration():
        if add:
            keys.add(file)
        elif use_id is not None:
            keys.use(file, use_id)
        elif remove_id is not None:
            keys.remove(file, remove_id)
        elif not show:
            keys.create(file)
        found = keys.load_keys(file)
    for key_id, fingerprint in keys.overview(found).items():
        click.echo(f"key {key_id:3}  {fingerprint}" + ("  in use" if key_id == found.use else ""))
