"""Every method can be searched on every detector that it can be trained on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from ablations.plan import trials_of
from ablations.run import parser
from ablations.search.options import search_options
from ablations.search.optuna_search import search_of
from ablations.search.search_results import command as command_of
from ablations.sweep_command import new_sweep
from lgd.config.detector_options import detector_overrides
from lgd.config.method import BUILT_IN, make
from lgd.config.paper import DetectorName
from lgd.config.pays_grid import FIRST_STAGES
from lgd.config.presets import built_in_settings, preset
from lgd.errors import InputError


@pytest.mark.parametrize("name", [x for x in BUILT_IN if x not in ("baseline", *FIRST_STAGES)])
@pytest.mark.parametrize("detector", ["retinanet", "fcos", "poto", "faster_rcnn", "mask_rcnn"])
def test_every_method_is_searched_on_every_detector_that_it_can_be_trained_on(
    name: str, detector: DetectorName, tmp_path: Path
) -> None:
    """And the best is trained again by the command that is told."""
    base = preset("nano").override([f"{key}={json.dumps(x)}" for key, x in built_in_settings(detector, "nano").items()])
    given = ["--detector", detector, "--method", name, "--samples", "2"]
    command = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--output", str(tmp_path / "out")]
    options = parser().parse_args([*command, *given])
    options.overrides = detector_overrides(options, options.overrides, options.preset)
    refusal = make(name).refusal(base.detector, base.schedule)
    if refusal:
        with pytest.raises(InputError, match=re.escape(refusal)):
            new_sweep(options, search_options(options))
        return
    spec, directory = new_sweep(options, search_options(options))
    search = search_of(spec, directory)
    assert search is not None
    assert (search.base.method.name, search.base.detector.name) == (name, detector)
    _, _, *arguments = shlex.split(command_of(spec, {"method.distill_weight": 0.5}, 0, str(tmp_path / "again")))
    again, there = new_sweep(parser().parse_args(arguments))
    trained = {x.experiment.method.name: x.experiment for x in trials_of(again, there).one_seed()}
    assert trained.keys() == {"baseline", name}
    expected = search.base.override({"method.distill_weight": 0.5, "seed": trained[name].seed})
    assert trained[name] == expected
