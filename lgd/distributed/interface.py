"""The network interface by which the workers of a training without GPUs reach each other."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import ray

VARIABLE = "GLOO_SOCKET_IFNAME"
"""Environment variable of Gloo's; one that is set is left as it is."""


def use_interface_of_node() -> None:
    """Have Gloo use the interface of this node's address in Ray, where the host's name is one for itself alone.

    Gloo gives the others the address of the host's name, which in the /etc/hosts of many systems is 127.0.1.1. To be
    called before the process group is made.
    """
    address = ray.util.get_node_ip_address()
    if os.environ.get(VARIABLE) or _is_loopback(address) or not _is_loopback(_address_of_name()):
        return
    for name, found in psutil.net_if_addrs().items():
        if any(x.address == address for x in found):
            os.environ[VARIABLE] = name


def _address_of_name() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        # Gloo then takes the loopback interface.
        return "127.0.0.1"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
