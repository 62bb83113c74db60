"""Receive buffers grow as asked and never shrink; dropped datagrams are seen."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from gapconn.socket_buffers import SO_RCVBUFFORCE, dropped_datagrams, grow_receive_buffer


class UnprivilegedSocket(socket.socket):
    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]  # one of its overloads
        if option == SO_RCVBUFFORCE:
            raise PermissionError
        super().setsockopt(level, option, value)


@pytest.mark.parametrize("kind", [socket.socket, UnprivilegedSocket])
def test_a_buffer_grows_and_never_shrinks(kind: type[socket.socket]) -> None:
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        assert grow_receive_buffer(sock, 65_536) == 65_536
        assert grow_receive_buffer(sock, 10_000) == 65_536


def test_without_privilege_the_system_limit_is_what_is_granted() -> None:
    with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        limit = int(file.read())
    with UnprivilegedSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert grow_receive_buffer(sock, limit + 4096) == limit


def test_datagrams_that_found_the_buffer_full_are_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        assert dropped_datagrams(receiver) == 0
        for _ in range(50):
            sender.sendto(bytes(1000), receiver.getsockname())
        received = 0
        with suppress(BlockingIOError):
            while receiver.recv(2000):
                received += 1

        assert received > 0
        assert dropped_datagrams(receiver) == 50 - received
