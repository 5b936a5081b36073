"""Worker processes of one training, over Gloo, without Ray."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext
from torch.multiprocessing.spawn import start_processes as start

START_METHOD = "forkserver"
"""Each process is a fork of one that has imported torch and the suite, which takes seconds."""

multiprocessing.set_forkserver_preload(["lgd.training.teacher", "lgd.training.worker"])


def run_on(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(rank, *arguments)`` in ``world`` processes of one group; raises what one of them raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: ProcessContext | None = start(
        _in_group, (world, port, work, arguments), nprocs=world, start_method=START_METHOD
    )
    assert context is None


def _in_group(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()
