"""A training whose directory stands for a part of a store: its workers may run on nodes that share no disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lgd.distributed import ranks
from lgd.storage import outputs


@contextmanager
def working_in(directory: Path, *, every: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, the workers train in ``directory``, each on the disk of its node, and the main process's is published.

    Before, it is brought up to date: the main process's whole, the others' but for checkpoints, whose state the main
    process gives them (:meth:`lgd.training.state.TrainingState.restore`). All workers must call it. every: called again
    and again, beside publishing. Raises StorageError. Does nothing for a directory that stands for no store.
    """
    if outputs.store_of(directory) is None:
        yield
        return
    main = ranks.is_main_process()
    # Nobody goes on before all have fetched: on one node they share the directory.
    ranks.run_on_all_ranks(lambda: outputs.fetch_training(directory, checkpoints=main))
    with ExitStack() as published:
        if main:
            published.enter_context(outputs.published(directory, every=every))
        yield
        # Where it cannot be published all workers raise: the others would wait for the main process.
        ranks.run_on_all_ranks(published.close, first_only=True)
