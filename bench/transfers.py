"""A large file and a long TCP stream through real pairs: identical? how much memory? `python -m bench.transfers`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.measure import Pair, free_port, peak_bytes, running_pair

CHUNK_BYTES = 1 << 20


def main() -> int:
    """Exit code 0 when both arrived byte-identical."""
    parser = argparse.ArgumentParser(prog="python -m bench.transfers", description=__doc__)
    parser.add_argument("--file-gib", type=float, default=5, help="size of the file (default 5)")
    parser.add_argument("--stream-gib", type=float, default=2, help="length of the stream (default 2)")
    parser.add_argument("--rate", default="800 Mbit/s", help="rate, no faster than the disk (default 800 Mbit/s)")
    parser.add_argument("--directory", help="where the file and its copy are (default: the temporary directory)")
    arguments = parser.parse_args()
    print("| what | bytes | identical | seconds | memory of ingress, egress (MiB, peak) |")
    print("| --- | --- | --- | --- | --- |")
    same = True
    if arguments.file_gib:
        same &= _file(int(arguments.file_gib * 2**30), arguments.rate, arguments.directory)
    if arguments.stream_gib:
        same &= _stream(int(arguments.stream_gib * 2**30), arguments.rate)
    return 0 if same else 1


def _file(size_bytes: int, rate: str, directory: str | None) -> bool:
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-", dir=directory) as work:
        source, target = Path(work, "source"), Path(work, "target")
        source.mkdir()
        sections = (
            f'type = "files"\ndirectory = "{source}"\nafter = "keep"',
            f'type = "files"\ndirectory = "{target}"',
        )
        with running_pair(*sections, rate=rate) as pair:
            pair.wait_active()
            _fill(Path(work, "big"), size_bytes)
            Path(work, "big").rename(source / "big.bin")
            started = time.monotonic()
            arrived = target / "big.bin"
            while not arrived.exists() and time.monotonic() - started < 600:
                if pair.status("egress")["missed"]["sink_losses"]:
                    break  # the disk was too slow for the rate: the file is given up, and reported
                time.sleep(0.1)
            took = time.monotonic() - started
            memory = _peaks(pair)
        same = arrived.exists() and _digest(source / "big.bin") == _digest(arrived)
    _row("file", size_bytes, same, took, memory)
    return same


def _stream(length: int, rate: str) -> bool:
    entry = free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:
        sections = (
            f'type = "tcp"\nlisten = "127.0.0.1:{entry}"',
            f'type = "tcp"\nconnect = "127.0.0.1:{target.getsockname()[1]}"',
        )
        with running_pair(*sections, rate=rate) as pair:
            pair.wait_active()
            sent, got = hashlib.sha256(), hashlib.sha256()

            def send() -> None:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", entry)) as client:
                    left = length
                    while left:
                        chunk = os.urandom(min(CHUNK_BYTES, left))
                        client.sendall(chunk)
                        sent.update(chunk)
                        left -= len(chunk)

            started = time.monotonic()
            sender = threading.Thread(target=send)
            sender.start()
            client, _ = target.accept()
            with client, contextlib.suppress(ConnectionError):
                while chunk := client.recv(CHUNK_BYTES):
                    got.update(chunk)
            took = time.monotonic() - started
            sender.join()
            memory = _peaks(pair)
    same = sent.digest() == got.digest()
    _row("tcp stream", length, same, took, memory)
    return same


def _fill(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        left = size_bytes
        while left:
            file.write(os.urandom(min(CHUNK_BYTES, left)))
            left -= min(CHUNK_BYTES, left)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _peaks(pair: Pair) -> tuple[float, float]:
    """Most resident memory of ingress and egress so far, in MiB."""
    return peak_bytes(pair.ingress.pid) / 2**20, peak_bytes(pair.egress.pid) / 2**20


def _row(what: str, size_bytes: int, same: bool, took: float, memory: tuple[float, float]) -> None:
    print(
        f"| {what} | {size_bytes:,} | {'yes' if same else 'NO'} | {took:.1f} | {memory[0]:.0f}, {memory[1]:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
