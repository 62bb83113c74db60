"""Files into a directory: whole and verified, or not at all.

    inlet ─▶ gather ─▶ run ─▶ FilesWriter, in a worker thread: DIRECTORY/.incoming/NAME ─▶ verify ─▶ sync ─▶ rename

`files_writer` makes files of chunks, `files_directory` has the names on disk.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import trio

from gapconn.backoff import Backoff
from gapconn.plugins import Carries, Context
from gapconn.sinks import Delivery, Inlet
from gapconn.sinks.files_config import FilesSinkConfig
from gapconn.sinks.files_writer import FilesWriter
from gapconn.throttle import ThrottledLog

_GATHERED_MAX = 4
"""Deliveries taken ahead, so that the disk and the link work at the same time."""

_HINTS = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "raise the quota, or free disk space",
    errno.EACCES: "let the user of this process write there",
    errno.EPERM: "let the user of this process write there",
    errno.EROFS: "mount it writable",
    errno.EMFILE: "raise the limit of open files",
}


class FilesSink:
    """Writes each file under a temporary name, verifies its length and SHA-256, and then renames it.

    A file that did not arrive whole leaves nothing behind and is reported once, as positions 0 to its last byte as far
    as its length is known, with one of these reasons:

    - `beginning_missing`, `hole`, `end_missing`: that part was lost on the link;
    - `wrong_length`, `wrong_hash`: what arrived is not what the source read;
    - `aborted`: the source broke off (the file changed while it was read, or the ingress was stopped);
    - `ingress_restarted`, `egress_stopped`: the file was still open then;
    - `path_refused`: the path is not below the directory, passes through a symbolic link, or cannot exist there;
    - `vanished`, `sync_failed`: somebody removed the temporary file, or the disk did not take it after all.

    Files of which nothing arrived are reported with the epoch in hexadecimal as the stream, their numbers as positions,
    and the reason `file_missing`.

    Of a late delivery, files that are whole in it are put where they belong, and are found again if they were reported
    as missing. What it has of others is thrown away and counted (`late_unusable`): their beginnings were.
    """

    Config: ClassVar[type[Any]] = FilesSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.CHUNKS})

    def __init__(self, config: FilesSinkConfig, context: Context) -> None:
        self._context = context
        self._log = ThrottledLog(context.log)
        self._writer = FilesWriter(config, context.link_id)
        self._directory = config.directory
        context.status.update(files=0, bytes=0, receiving=None)

    async def run(self, inlet: Inlet) -> None:
        """Write until the inlet ends."""
        send, receive = trio.open_memory_channel[Delivery](_GATHERED_MAX)
        try:
            await self._write(deque(), inlet)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_gather, inlet, send, name="files gather")
                async for delivery in receive:
                    await self._write(deque([delivery, *_waiting(receive)]), inlet)
        finally:
            self._writer.close()
            self._tell(inlet)

    async def _write(self, deliveries: deque[Delivery], inlet: Inlet) -> None:
        """Make the directory ready and write `deliveries`, however many tries it takes."""
        backoff = Backoff()
        while True:
            done, error = await trio.to_thread.run_sync(self._writer.write, deliveries)
            self._tell(inlet)
            for delivery in done:
                if delivery in self._writer.declined:
                    delivery.decline()
                else:
                    delivery.accept()
            self._writer.declined.clear()
            if error is None:
                return
            if done:
                backoff.succeeded()
            delay = backoff.failed()
            self._context.counters["write_retries"] += 1
            self._context.log.error(
                "write_failed",
                directory=self._directory,
                error=str(error),
                hint=_HINTS.get(error.errno or 0, "see the error; it is tried again for ever"),
                retry_in_s=round(delay, 1),
            )
            await trio.sleep(delay)

    def _tell(self, inlet: Inlet) -> None:
        """Pass on what the worker thread noted: counters, logs and the inlet belong to Trio's thread."""
        writer = self._writer
        for note in writer.notes:
            self._context.counters[note.counter] += note.count
            if note.loss is not None:
                stream, first, last = note.loss
                inlet.lost(stream=stream, first=first, last=last, reason=note.event)
            if note.found is not None:
                stream, first, last = note.found
                inlet.found(stream=stream, first=first, last=last)
            self._log.warning(note.event, **note.facts)
        writer.notes.clear()
        for path, size_bytes in writer.placed:
            self._context.log.debug("file_received", path=path, size_bytes=size_bytes)
        writer.placed.clear()
        self._context.status.update(files=writer.files, bytes=writer.bytes, receiving=writer.receiving)


async def _gather(inlet: Inlet, channel: trio.MemorySendChannel[Delivery]) -> None:
    with channel:
        async for delivery in inlet:
            await channel.send(delivery)


def _waiting(channel: trio.MemoryReceiveChannel[Delivery]) -> Iterator[Delivery]:
    """What can be had without waiting."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            yield channel.receive_nowait()
