"""A search of thousands of trials: what Optuna is asked and told through the sweep's own search, and its report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ablations.scaling.processes import Row, read_commands, run_measured

SHOW = "from ablations.scaling.study import show; show({!r})"

TIMED = 20
"""Proposals before each size whose median time is taken."""


def measure_study(sizes: Sequence[int], directory: Path) -> Iterator[Row]:
    """One search, measured at each of ``sizes`` (trials, rising), whose trainings are a formula."""
    from ablations.plan import describe, search_spec
    from ablations.search.optuna_search import STUDY_FILE, search_of
    from ablations.trial_config import RecordLabels, trial_config
    from ablations.tune.ray_trial import last_report
    from lgd.config.grids import Trial
    from lgd.distributed.resources import Resources

    spec = describe("components", "nano", arms="baseline", search=search_spec(sizes[-1], ["AP", "gpu_hours"], False))
    spec.write(directory)
    search = search_of(spec, directory)
    assert search is not None
    labels, one = RecordLabels(spec.grid, spec.preset), Resources(1, 0, 1)
    base = trial_config(Trial("", search.base, directory), labels, directory, one)
    proposing, telling = list[float](), list[float]()
    with search.opened(base) as (searcher, _, left):
        for i in range(left):
            begun = time.process_time()
            proposed: Any = searcher.suggest(f"trial-{i}")
            proposing.append(time.process_time() - begun)
            record = _record(proposed)
            result = {key: x for key, x in last_report(record).items() if key != "record"}
            begun = time.process_time()
            searcher.on_trial_complete(f"trial-{i}", result)
            telling.append(time.process_time() - begun)
            if i + 1 in sizes:
                yield Row("study", i + 1, "a proposal", "ms", 1e3 * median(proposing[-TIMED:]))
                yield Row("study", i + 1, "telling a result", "ms", 1e3 * median(telling[-TIMED:]))
                yield Row("study", i + 1, "all proposals", "s", sum(proposing))
                yield Row("study", i + 1, STUDY_FILE, "MB", (directory / STUDY_FILE).stat().st_size / 1e6)
                yield Row(
                    "study",
                    i + 1,
                    "table and plots of the search",
                    "s",
                    run_measured(["-c", SHOW.format(str(directory))]).cpu,
                )
                yield from read_commands("study", i + 1, directory, "components")


def _record(proposed: dict[str, Any]) -> Any:
    """The saved record of a proposed trial. Its scores follow from the parameters."""
    from ablations.search.search_space import proposed_trial
    from lgd.config.experiment import parse
    from lgd.results.provenance import hardware, now, versions
    from lgd.results.record import Record, Scores

    trial = proposed_trial(proposed)
    experiment = parse(trial["experiment"])
    method: Any = experiment.method
    ap = 25 - abs(method.distill_weight - 2) - abs(method.instructive_weight - 1) + method.encoder
    record = Record(
        status="finished", experiment=experiment, steps=experiment.schedule.steps, **trial["labels"],
        student=Scores(AP=ap, AP50=1.5 * ap, AP75=ap, APs=None, APm=None, APl=None),
        seconds={"training": 60 * method.lr_factor}, device_seconds={"training": 60 * method.lr_factor},
        versions=versions(), hardware=hardware(), finished=now(),
    )  # fmt: skip
    record.save(Path(trial["directory"]))
    return record


def show(directory: str) -> None:
    """What a search shows at its end, the plots included."""
    from rich.console import Console

    from ablations.plan import read_sweep
    from ablations.search.optuna_search import search_of
    from ablations.search.search_results import show_search

    spec = read_sweep(Path(directory))
    search = search_of(spec, Path(directory))
    assert search is not None
    show_search(spec, search, Console())
