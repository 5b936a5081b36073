"""Event writers of a training's scalars: JSON and TensorBoard always, Weights & Biases and MLflow on request.

All are detectron2 EventWriters, which its PeriodicWriter hook calls. The services' packages are optional extras
(``pip install -e '.[wandb]'``), configured by their own environment variables (``WANDB_*``, ``MLFLOW_*``).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from lgd.config.experiment import Experiment, settings
from lgd.errors import InputError
from lgd.files import write_text
from lgd.training.log_services import check, package

__all__ = ["MlflowWriter", "PROJECT", "WandbWriter", "check", "writers"]

_log = logging.getLogger(__name__)

AWAY_S = 60.0
"""Seconds for which a service that did not take what it was sent is left alone."""

RUN_FILE = "log_run.txt"
"""In a training's directory: the id that its runs in the services have, of all attempts and wherever they run."""

MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Unless the environment says otherwise: by default MLflow tries for so long that the other workers' wait ends."""

PROJECT = "lgd"
"""Name of the project (MLflow: experiment) that runs are logged to, unless the environment names one."""


def writers(experiment: Experiment, directory: Path, start: int, *, goes_on: bool) -> list[EventWriter]:
    """The writers of a training in ``directory`` that begins with step ``start``.

    goes_on: whether it was begun by an earlier attempt. Where that had its services, one that does not answer now is
    left out. Raises InputError as check(), and for a service that refuses the login where the training begins.
    """
    made: list[EventWriter] = [
        JSONWriter(str(directory / "metrics.json")),
        # Also at step 0: an attempt that was killed before its first checkpoint has logged steps too.
        TensorboardXWriter(str(directory / "tensorboard"), purge_step=start),
    ]
    return made + (_services(experiment, directory, start, goes_on) if experiment.log else [])


def _services(experiment: Experiment, directory: Path, start: int, goes_on: bool) -> list[EventWriter]:
    """Those of the services that are logged to."""
    path, known = directory / RUN_FILE, ""
    if goes_on:
        with suppress(OSError, UnicodeDecodeError):
            known = path.read_text(encoding="utf-8").strip()
        if start and not known:
            # Begun by an earlier version.
            known = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    identity = known or uuid.uuid4().hex[:16]
    opened = [_opened(name, experiment, directory, identity, bool(known)) for name in experiment.log]
    if not known:
        # Not before: an attempt that they refused has begun nothing there.
        write_text(path, f"{identity}\n")
    return [writer for writer in opened if writer is not None]


class _ServiceWriter(EventWriter):
    """Sends the scalars that are new since the last call."""

    def __init__(self) -> None:
        self._sent = -1
        self._complained = False
        self._away_until = -math.inf

    def write(self) -> None:
        if time.monotonic() < self._away_until:
            return
        storage = get_event_storage()
        new: dict[int, dict[str, float]] = {}
        for name, (value, step) in storage.latest_with_smoothing_hint(20).items():
            # Values that are not finite cannot be plotted.
            if step > self._sent and math.isfinite(value):
                new.setdefault(step, {})[name] = value
        for step in sorted(new):
            try:
                self._send(new[step], step)
            except Exception as error:  # a network that is down for a while must not end a training
                if not self._complained:
                    _log.warning("%s: %s", type(self).__name__, " ".join(str(error).split())[:200])
                self._complained = True
                # All workers wait for each attempt, which may take as long as the service's client tries.
                self._away_until = time.monotonic() + AWAY_S
                break
        self._sent = max([self._sent, *new])

    def _send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError


class WandbWriter(_ServiceWriter):
    """Logs to Weights & Biases: one run a training; a resumed training continues its run."""

    def __init__(self, experiment: Experiment, directory: Path, identity: str, goes_on: bool) -> None:
        super().__init__()
        # Of a run that goes on, W&B itself leaves out the steps that it has.
        self._run: Any = package("wandb").init(
            project=PROJECT,
            id=identity,
            name=directory.name,
            config=settings(experiment),
            dir=str(directory),
            resume="allow",
        )

    def _send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter(_ServiceWriter):
    """Logs to MLflow: one run a training; a resumed training continues its run, without the steps that this has."""

    def __init__(self, experiment: Experiment, directory: Path, identity: str, goes_on: bool) -> None:
        super().__init__()
        self._last_steps: dict[str, int] = {}
        for name, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        self._mlflow: Any = package("mlflow")
        self._client: Any = self._mlflow.tracking.MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        home = found.experiment_id if found else self._client.create_experiment(PROJECT)
        # Another training's run where this one begins: what it has logged is not this training's.
        query = f"tags.`lgd.run` = '{identity}'"
        earlier = self._client.search_runs([home], query, max_results=1) if goes_on else []
        self._continues = bool(earlier)
        if earlier:
            self._run: str = earlier[0].info.run_id
            return
        self._run = self._client.create_run(home, run_name=directory.name, tags={"lgd.run": identity}).info.run_id
        for name, value in settings(experiment).items():
            self._client.log_param(self._run, name, value)

    def _send(self, values: dict[str, float], step: int) -> None:
        now, metrics = int(time.time() * 1000), []
        for name, value in values.items():
            # MLflow allows no other characters.
            allowed = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
            if step > self._last_step(allowed):
                metrics.append(self._mlflow.entities.Metric(allowed, value, now, step))
        if metrics:
            # In one request: all workers wait for it.
            self._client.log_batch(self._run, metrics=metrics)

    def _last_step(self, name: str) -> int:
        """The last step that earlier attempts have logged of a metric; -1 where they have none."""
        if not self._continues:
            return -1
        if name not in self._last_steps:
            points = self._client.get_metric_history(self._run, name)
            self._last_steps[name] = max((point.step for point in points), default=-1)
        return self._last_steps[name]

    def close(self) -> None:
        self._client.set_terminated(self._run)


_SERVICES: dict[str, Any] = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def _opened(name: str, experiment: Experiment, directory: Path, identity: str, goes_on: bool) -> EventWriter | None:
    try:
        writer: EventWriter = _SERVICES[name](experiment, directory, identity, goes_on)
    except InputError:
        raise
    except Exception as error:  # no key, no answer, or a setting of its own that it refuses
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if not goes_on:
            raise InputError(f"log {name}: {reason}") from None
        # It was there when the training began: one that is away now must not end what has been trained.
        _log.warning("log %s: %s: the training goes on without it", name, reason)
        return None
    return writer
