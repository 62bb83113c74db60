"""Sockets that the service manager has opened and keeps: what comes while this process is away waits in them.

systemd's protocol (`sd_listen_fds(3)`): `LISTEN_FDS` file descriptors from 3 on, for the process `LISTEN_PID`. A socket
is taken by whoever would open one of the same kind on the same address.
"""

from __future__ import annotations

import functools
import os
import socket
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

FIRST_FD: Final = 3


def passed_socket(
    family: socket.AddressFamily, kind: socket.SocketKind, address: tuple[Any, ...], log: FilteringBoundLogger
) -> socket.socket | None:
    """A duplicate of the passed socket that is bound to `address`, a numeric one; None if there is none.

    What waits in it goes on waiting when the duplicate is closed.
    """
    for passed in _passed():
        if (passed.family, passed.type, passed.getsockname()[:2]) == (family, kind, address[:2]):
            log.info("socket_passed", address=_named(passed))
            return passed.dup()
    if _passed():
        log.warning(
            "passed_sockets_not_used",
            passed=[_named(each) for each in _passed()],
            wanted=f"{kind.name} {address[0]}:{address[1]}",
            remedy=f"in the socket unit: Listen{'Datagram' if kind is socket.SOCK_DGRAM else 'Stream'}="
            f"{address[0]}:{address[1]}",
        )
    return None


@functools.cache
def _passed() -> tuple[socket.socket, ...]:
    """All sockets that were passed to this process; they stay open until its end."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return ()
    sockets = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError:  # it is something else
            continue
    return tuple(sockets)


def _named(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname() or ("", 0)
    return f"{sock.type.name} {host}:{port}"
