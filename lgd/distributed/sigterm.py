"""SIGTERM to a worker of Ray Train, whose training does not run in the process's main thread."""

from __future__ import annotations

from ray.train.v2._internal.execution.callback import WorkerCallback

from lgd.distributed import notice


class ListenForSigterm(WorkerCallback):
    """Makes the first SIGTERM to a worker a notice (lgd/distributed/notice.py). Ray calls it in the main thread."""

    def after_init_train_context(self) -> None:
        notice.listen()
