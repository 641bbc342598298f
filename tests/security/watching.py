"""What the processes of a study do outside of it: the sockets they listen on."""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path
from typing import NamedTuple

LISTENING = "0A"


class Listener(NamedTuple):
    """A listening socket, and the programs that hold it."""

    address: str
    programs: frozenset[str]


class Watch(threading.Thread):
    """Collects, as long as it runs, every listening TCP socket and every bound UDP socket of processes with
    `name=value` in their environment, and of their children."""

    def __init__(self, name: str, value: str):
        super().__init__(daemon=True)
        self._mark = f"{name}={value}".encode()
        self._done = threading.Event()
        self._seen: dict[str, tuple[str, set[str]]] = {}

    def run(self) -> None:
        while not self._done.wait(0.1):
            self._look()

    def stop(self) -> list[Listener]:
        """End it; what was seen."""
        self._done.set()
        self.join()
        return [Listener(address, frozenset(programs)) for address, programs in self._seen.values()]

    def _look(self) -> None:
        sockets = _sockets()
        processes = {int(entry.name): entry for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        parents, ours = {}, set()
        for pid, entry in processes.items():
            try:
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    ours.add(pid)
            except OSError:
                continue
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        for pid in ours:
            try:
                program = (processes[pid] / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                for link in (processes[pid] / "fd").iterdir():
                    found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
                    if found and found[1] in sockets:
                        self._seen.setdefault(found[1], (sockets[found[1]], set()))[1].add(program)
            except OSError:
                continue


def _sockets() -> dict[str, str]:
    """Inode to address of every listening TCP socket and every UDP socket."""
    found = {}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if name.startswith("udp") or words[3] == LISTENING:
                found[words[9]] = _address(words[1].partition(":")[0])
    return found


def _address(digits: str) -> str:
    """The address that the kernel prints as words of four bytes, each in the machine's order."""
    data = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
