"""Two hosts on one machine: network namespaces with a link between them that loses packets."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

HOSTS = ("10.77.0.1", "10.77.0.2")
"""Addresses of the two."""

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 1500


@dataclass
class Link:
    """What is between the two hosts: a thread that carries every packet from one to the other, or drops it.

    netem of the kernel's traffic control would do the same, but many kernels come without it.
    """

    loss: float
    """Part of the packets that are lost, 0 to 1; may be changed meanwhile."""
    carried: int = 0
    dropped: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def carry(self, ends: tuple[int, int], over: threading.Event) -> None:
        while not over.is_set():
            for end in select.select(ends, (), (), 0.1)[0]:
                packet = os.read(end, MTU)
                if self.rng.random() < self.loss:
                    self.dropped += 1
                    continue
                self.carried += 1
                # A host that is gone takes none.
                with suppress(OSError):
                    os.write(ends[end == ends[0]], packet)


def missing() -> str:
    """What two hosts need that this machine lacks; "" for nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no command ip"
    try:
        with two_hosts(0.0):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"


@contextmanager
def two_hosts(loss: float) -> Iterator[Link]:
    """Inside there are two network namespaces, :func:`namespace` 0 and 1, which reach each other and nothing else."""
    link, over = Link(loss), threading.Event()
    with ExitStack() as stack:
        ends = tuple(stack.enter_context(_host(number)) for number in (0, 1))
        thread = threading.Thread(target=link.carry, args=(ends, over), daemon=True)
        thread.start()
        try:
            yield link
        finally:
            over.set()
            thread.join()


def namespace(host: int) -> str:
    return f"lgd-{os.getpid()}-{host}"


def interface(host: int) -> str:
    """Its network interface."""
    return f"lgd{host}"


@contextmanager
def _host(number: int) -> Iterator[int]:
    """Make the namespace; the open end of its interface."""
    name, device = namespace(number), interface(number)
    end = os.open(TUN, os.O_RDWR)
    try:
        _ip("netns", "add", name)
        try:
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "addr", "add", f"{HOSTS[number]}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            yield end
        finally:
            _ip("netns", "delete", name)
    finally:
        os.close(end)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def enter(name: str) -> None:
    """Move this thread, and those that it starts from now on, into a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{name}").open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
