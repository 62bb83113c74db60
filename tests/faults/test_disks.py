"""Full disks: a small file system under the spool, and one under the state directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.faults.pair import KafkaPair
from tests.kafka.cluster import Cluster
from tests.processes.ends import Ends

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system"),
]


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of that size, in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


@pytest.mark.req("GC-DLV-22")
async def test_the_disk_of_the_spool_is_full(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """The newest is refused and reported, what is on disk is kept; when there is room again, it goes on."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery, records_per_second=8_000, with_target=False)
    with small_disk(ends.directory / "disk", "8m") as disk:
        pair.configure(
            spool=f'directory = "{disk}"\nmax_bytes = "1 GiB"\nkeep_free_bytes = "1 MiB"\nafter = "50ms"',
            sink_buffer_bytes="512 KiB",
            message_bytes_max="512 KiB",
            reassembly_bytes_max="1 MiB",
        )
        await pair.begin()
        async with pair.loaded():
            await pair.flows()
            await pair.egress.until_healthy(False)
            await pair.egress.wait_logged("spool_disk_full")
            await pair.egress.wait_logged("messages_refused")
            pair.count("disk of the spool full")
            await pair.create_target()
            await pair.egress.until_healthy(True)
            await pair.sends_on()
        account = await pair.close("disk of the spool full")
    assert 0 < account.lost < account.produced
    assert not account.twice


@pytest.mark.long
@pytest.mark.req("GC-DLV-41", "GC-RPR-1")
async def test_the_disk_of_the_state_is_full(ends: Ends, kafka: Cluster, delivery: str) -> None:
    """Not a byte is left for the state of either end, under load, and both go on; then there is room again."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    with small_disk(ends.directory / "disk", "16m") as disk:
        pair.configure(state_directory=str(disk), spool='keep_free_bytes = "1 MiB"')
        await pair.begin()
        async with pair.loaded():
            await pair.flows()
            filler = await trio.to_thread.run_sync(fill, disk)
            pair.count("disk of the state full")
            told = await pair.egress.wait_logged("state_disk_full")
            assert f"{disk / pair.name}." in told["why"]
            assert "free space" in told["why"]
            await pair.egress.until_healthy(False)
            await pair.sends_on()
            filler.unlink()
            await pair.egress.wait_logged("state_restored")
            await pair.egress.until_healthy(True)
            await pair.sends_on()
        account = await pair.close("disk of the state full")
    assert account.once == account.produced, account


@pytest.mark.long
@pytest.mark.req("GC-DLV-18", "GC-DLV-19", "GC-DLV-41", "GC-RPR-1")
async def test_an_egress_is_killed_while_the_disk_of_its_state_is_full(
    ends: Ends, kafka: Cluster, delivery: str
) -> None:
    """The next one goes on behind what was stored, and reports or delivers again what was not."""
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    with small_disk(ends.directory / "disk", "16m") as disk:
        pair.configure(state_directory=str(disk), spool='keep_free_bytes = "1 MiB"')
        await pair.begin()
        async with pair.loaded():
            await pair.flows()
            filler = await trio.to_thread.run_sync(fill, disk)
            await pair.egress.wait_logged("state_disk_full")
            await pair.kill("egress")
            pair.count("killed with the disk of the state full")
            filler.unlink()
            pair.start("egress")
            await pair.sends_on()
        # Of an egress that could not store a single position, nobody can ask where a loss was.
        await pair.close("killed with the disk of the state full", places=False)
