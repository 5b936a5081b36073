"""``schedule.epochs`` as steps, once the data set is known."""

from __future__ import annotations

from lgd.config.experiment import Experiment
from lgd.data.catalog import load_dataset


def resolve_epochs(experiment: Experiment) -> Experiment:
    """``experiment`` with ``schedule.epochs`` turned into ``schedule.steps``; itself where no epochs are set.

    Raises InputError, one line, as :func:`lgd.data.catalog.load_dataset` does, and where the settings do not fit that
    many steps.
    """
    if experiment.schedule.epochs is None:
        return experiment
    train = load_dataset(experiment.data).counts.train
    # Training leaves out images without objects.
    return experiment.override({"schedule.epoch_images": train.images - train.empty})
