"""What the kernel holds for a socket: buffer sizes, and what a full buffer cost."""

from __future__ import annotations

import socket
import struct

SO_RCVBUFFORCE = 33
"""`socket(7)`: may exceed `net.core.rmem_max`; needs CAP_NET_ADMIN. Python has no name for it."""

SO_MEMINFO = 55
"""`<linux/sock_diag.h>`: nine 32-bit counters, the last one is the datagrams dropped. Linux 4.12."""

_MEMINFO = struct.Struct("=9I")


def grow_receive_buffer(sock: socket.socket, wanted_bytes: int) -> int:
    """Ask for a receive buffer of `wanted_bytes`; it never shrinks. Returns the bytes granted.

    Both figures are payload and bookkeeping of the kernel in the kernel's own count: it doubles what is asked, and this
    function halves what it answers.
    """
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if granted >= wanted_bytes:
        return granted
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def dropped_datagrams(sock: socket.socket) -> int:
    """Datagrams that the kernel dropped at this socket so far, modulo 2**32; 0 where the kernel does not say.

    One system call when one wants to know: `SO_RXQ_OVFL` would cost ancillary data at every datagram.
    """
    try:
        answer = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0
    dropped: int = _MEMINFO.unpack(answer)[-1]
    return dropped
