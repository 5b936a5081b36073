"""What Ray Train calls in the main thread of each of its workers, before these make their process group.

A training does not run in that thread.
"""

from __future__ import annotations

from ray.train.v2._internal.execution.callback import WorkerCallback

from lgd.distributed import notice
from lgd.distributed.interface import use_interface_of_node


class ListenForSigterm(WorkerCallback):
    """Makes the first SIGTERM to a worker a notice (lgd/distributed/notice.py)."""

    def after_init_train_context(self) -> None:
        notice.listen()


class UseInterfaceOfNode(WorkerCallback):
    """:func:`use_interface_of_node`."""

    def after_init_train_context(self) -> None:
        use_interface_of_node()
