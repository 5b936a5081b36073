"""The trainable of Ray Tune: the training of one trial."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ablations.remote_output import Place, place_of, try_to_publish
from ablations.search.search_space import objectives, proposed_trial
from ablations.trial_config import ERROR_FILE, TrialConfig
from lgd.config.experiment import Experiment, parse
from lgd.config.method import import_method
from lgd.distributed import notice
from lgd.distributed.ray_train import Workers, node_is_drained
from lgd.results.provenance import now
from lgd.results.record import FILE, Record, load
from lgd.storage import outputs
from lgd.storage.store import StorageError
from lgd.training.progress import Progress, Stopped
from lgd.training.resume import remove_resume_files
from lgd.training.run import error_reason, failed_record
from lgd.training.teacher import train_teacher, train_with_teacher
from lgd.training.worker import Job, experiment_for_worker, loading_within, train_in_trial

TEACHER = "teacher"
"""Arm of the trials that train frozen teachers."""


def config_of(parameters: dict[str, Any]) -> TrialConfig:
    """The trial that Tune's parameters stand for: a planned one, or one that a search proposed."""
    return cast(TrialConfig, json.loads(parameters["trial"])) if "trial" in parameters else proposed_trial(parameters)


def run_trial(parameters: dict[str, Any]) -> None:
    """Train one trial; leave its record in its directory whatever happens."""
    # Here, not at the top: ablations/tune/ray_sweep.py sets what Ray Tune reads when it is imported.
    from ray import tune

    trial = config_of(parameters)
    try:
        with place_of(trial) as place:
            report = _run_trial(trial, place)
    except StorageError as error:
        report = {"stopped": 0, "unpublished": str(error)}
    except notice.Leaving:
        # Tune starts the trial again elsewhere.
        notice.end_process()
    # After all that it tells of is published.
    tune.report(report)


def _run_trial(trial: TrialConfig, place: Place) -> dict[str, Any]:
    """Its last report to Tune."""
    from ray import tune
    from ray.exceptions import RayActorError

    directory = place.directory
    if place.stopped():
        return {"stopped": 0}
    if (directory / FILE).exists():
        # An earlier attempt ended with an error, and the worker after it; or a search asks for what it had before.
        outputs.publish_where_missing(directory, FILE)
        record = load(directory / FILE)
        # After it is published: until then, another node has only them to go on from.
        remove_resume_files(directory, record)
        return last_report(record)
    # What the driver's command named, this worker may load.
    import_method(trial["experiment"]["method"]["name"])
    experiment = parse(trial["experiment"])

    def on_progress(progress: Progress) -> None:
        if progress["step"] >= progress["steps"]:
            # A scheduler must not end what has only its record to come: the last report is that one's.
            return
        tune.report({**progress})

    started = now()
    try:
        record = _train(experiment, trial, place, on_progress)
    except Stopped as stopped:
        return {"stopped": stopped.step}
    except (RayActorError, StorageError):
        # One of several workers died: Tune starts the trial again, as it does when a trial's own process dies.
        raise
    except Exception as error:
        with contextlib.suppress(StorageError):
            outputs.fetch_notes(directory)
        if (directory / FILE).exists() and (record := load(directory / FILE)).status == "finished":
            # What failed came after it: the training is not to be repeated for that.
            outputs.publish_where_missing(directory, FILE)
            remove_resume_files(directory, record)
            return last_report(record)
        record = failed_record(experiment, error_reason(error), started=started, directory=directory, **trial["labels"])
        if _save_failure(record, directory):
            # An error may have left this worker's GPU unusable. Raised on, it ends the worker; the next one finds the
            # record and reports it.
            raise
    return last_report(record)


class ListensForSigterm:
    """Makes the first SIGTERM to a trial's worker a notice (lgd/distributed/notice.py).

    Tune calls it in the worker's main thread, and trains in another.
    """

    def setup(self, config: dict[str, Any]) -> None:
        notice.listen()
        super().setup(config)  # type: ignore[misc]


# Where Tune looks for other bases of the class that it makes of the function.
run_trial.__mixins__ = (ListensForSigterm,)  # type: ignore[attr-defined]


def last_report(record: Record) -> dict[str, Any]:
    """A trial's last report to Tune. It contains the record, since the driver may not see this worker's disk."""
    found = objectives(record)
    evaluated = {"evaluated_step": record.evaluations[-1].step if record.evaluations else record.steps} if found else {}
    return {"record": record.model_dump_json(), "status": record.status, "step": record.steps, **evaluated, **found}


def _save_failure(record: Record, directory: Path) -> bool:
    """Write the record and the traceback of the error at hand; whether both could be written."""
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        record.save(directory)
        try_to_publish(directory / ERROR_FILE, directory / FILE)
        return True
    return False


def _train(experiment: Experiment, trial: TrialConfig, place: Place, on_progress: Callable[[Progress], None]) -> Record:
    directory, teachers, stopped = place
    labels, gpus = trial["labels"], trial["gpus"]
    if trial["workers"] > 1:
        workers = Workers(trial["workers"], gpus, trial["cpus"])
        job = Job(experiment, trial["directory"], trial["teachers"], workers, labels, trial["stop"], trial["lease"])
        return train_in_trial(job, on_progress)
    experiment = experiment_for_worker(loading_within(experiment, trial["cpus"], gpus), trial["cpus"], gpus)
    options: dict[str, Any] = {"on_progress": on_progress, "should_stop": stopped, "share": gpus or 1.0, **labels}
    with notice.watching(node_is_drained):
        if labels["arm"] == TEACHER:
            return train_teacher(experiment, directory, **options)
        return train_with_teacher(experiment, directory, teachers=teachers, **options)
