"""``schedule.epochs`` as steps, once the data set is known."""

from __future__ import annotations

from lgd.config.experiment import Experiment
from lgd.data.catalog import load_dataset
from lgd.data.split import part_size


def epoch_overrides(experiment: Experiment) -> list[str]:
    """The assignment that turns ``schedule.epochs`` into ``schedule.steps``; none where no epochs are set.

    Raises InputError, one line, as :func:`lgd.data.catalog.load_dataset` does.
    """
    if experiment.schedule.epochs is None:
        return []
    train = load_dataset(experiment.data).counts.train
    # Training leaves out images without objects.
    images = part_size(train.images - train.empty, experiment.data.train_fraction)
    return [f"schedule.epoch_images={images}"]


def resolve_epochs(experiment: Experiment) -> Experiment:
    """``experiment`` with ``schedule.epochs`` turned into ``schedule.steps``.

    Raises InputError, one line, as :func:`epoch_overrides` does, and where the settings do not fit that many steps.
    """
    return experiment.override(epoch_overrides(experiment))
