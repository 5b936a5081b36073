"""The interface that Gloo uses."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest
import ray

from lgd.distributed.interface import VARIABLE, use_interface_of_node

INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.1.2.3", "fe80::1"], "ib0": ["10.9.9.9"]}


@pytest.mark.parametrize(
    ("node", "name", "given", "expected"),
    [
        # Debian's /etc/hosts.
        ("10.9.9.9", "127.0.1.1", None, "ib0"),
        ("10.9.9.9", None, None, "ib0"),
        ("10.9.9.9", "10.1.2.3", None, None),
        ("127.0.0.2", "127.0.1.1", None, None),
        ("10.9.9.9", "127.0.1.1", "eth0", "eth0"),
    ],
)
def test_it_is_the_nodes_where_the_hosts_name_is_its_own_alone(
    node: str, name: str | None, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def address(_: str) -> str:
        if name is None:
            raise socket.gaierror("Name or service not known")
        return name

    found = {x: [SimpleNamespace(address=y) for y in addresses] for x, addresses in INTERFACES.items()}
    # Set first, so that it is as before after the test.
    monkeypatch.setenv(VARIABLE, given or "")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(socket, "gethostbyname", address)
    use_interface_of_node()
    assert os.environ[VARIABLE] == (expected or "")
