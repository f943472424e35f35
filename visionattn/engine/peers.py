"""Detects at once that a process of a distributed run has died, whatever the others are doing."""

import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mmengine.dist import broadcast_object_list, get_dist_info

__all__ = ["PeerWatch"]

_MESSAGE = struct.Struct("i")  # the rank of a process that has died, or:
_FINISHED = -1
# How long a process may take to end by itself after it has lost a peer.
_GRACE = 10.0


class PeerWatch:
    """Connects all processes of a run to the first: the operating system closes a connection when a process dies.

    Unlike heartbeats this costs nothing, and a process that is only busy is not taken for dead. A process that still
    waits for a dead one after ten seconds, in a collective operation or elsewhere, is ended. Does nothing in a run of
    one process.

    Args:
        logger: Where an error goes before a process is ended.
        hint: What to add to the message, such as how to resume.
    """

    def __init__(self, logger: logging.Logger, hint: Callable[[], str]) -> None:
        self.logger = logger
        self.hint = hint
        self.lost: int | None = None
        self._rank, self._world_size = get_dist_info()
        self._peers: dict[int, socket.socket] = {}
        self._noticed = threading.Event()
        self._ended = threading.Event()

    def __enter__(self) -> "PeerWatch":
        if self._world_size > 1:
            try:
                self._connect()
            except OSError as error:
                self.logger.warning(f"The processes of this run can't watch each other: {error}")
            for rank, peer in self._peers.items():
                threading.Thread(target=self._listen, args=(rank, peer), daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._ended.set()
        for peer in self._peers.values():
            if kind is None:
                _send(peer, _FINISHED)
            elif self.lost is not None:
                _send(peer, self.lost)
            peer.close()

    def message(self, wait: float = 0.0) -> str | None:
        """The message if a process has died; waits up to a number of seconds for it."""
        self._noticed.wait(wait if self._peers else 0.0)
        if self.lost is None:
            return None
        return f"the process of rank {self.lost} has died, so that rank {self._rank} ends too; {self.hint()}"

    def _connect(self) -> None:
        server = socket.create_server(("", 0)) if self._rank == 0 else None
        shared: list[Any] = [server.getsockname()[1], secrets.token_bytes(16)] if server else [None, None]
        broadcast_object_list(shared)
        port, token = shared
        if server is None:
            peer = socket.create_connection((os.environ.get("MASTER_ADDR", "127.0.0.1"), port), timeout=30)
            peer.sendall(token + _MESSAGE.pack(self._rank))
            self._peers[0] = _kept_alive(peer)
            return
        with server:
            deadline = time.monotonic() + 30
            while len(self._peers) < self._world_size - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                peer, _ = server.accept()
                peer.settimeout(5)
                hello = _receive(peer, len(token) + _MESSAGE.size)
                if hello[: len(token)] == token:  # anything else is a stranger
                    self._peers[_MESSAGE.unpack(hello[len(token) :])[0]] = _kept_alive(peer)

    def _listen(self, rank: int, peer: socket.socket) -> None:
        try:
            message = _receive(peer, _MESSAGE.size)
        except OSError:
            message = b""
        news = _MESSAGE.unpack(message)[0] if len(message) == _MESSAGE.size else rank
        if news == _FINISHED or self._ended.is_set() or self.lost is not None:
            return
        self.lost = news
        self._noticed.set()
        if not self._ended.wait(_GRACE):
            self.logger.error(self.message())
            os._exit(1)


def _kept_alive(peer: socket.socket) -> socket.socket:
    """Enables keep-alive, which detects a machine that vanishes."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _receive(peer: socket.socket, size: int) -> bytes:
    """Receives a number of bytes, or fewer if the connection ends."""
    received = b""
    while len(received) < size and (part := peer.recv(size - len(received))):
        received += part
    return received


def _send(peer: socket.socket, message: int) -> None:
    with suppress(OSError):  # it may be gone, too
        peer.sendall(_MESSAGE.pack(message))
