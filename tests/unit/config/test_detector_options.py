"""``--detector`` and ``--detector-set`` as settings."""

from __future__ import annotations

import argparse

import pytest
from detectron2.model_zoo.model_zoo import _ModelZooUrls

from lgd.config.detector_options import add_detector_arguments, detector_overrides
from lgd.config.presets import BUILT_IN_DETECTORS, named_experiment, preset
from lgd.errors import InputError

ZOO = "zoo:COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def _options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_detector_arguments(parser)
    return parser.parse_args(arguments)


def test_options_become_settings() -> None:
    options = _options(
        "--detector", ZOO, "--detector-set", "MODEL.FPN.OUT_CHANNELS=32", "--detector-set", "A=[[8], [9]]"
    )
    given = detector_overrides(options, ["seed=1"], "tiny")
    experiment = preset("tiny").override(given)
    assert experiment.detector.overrides == ("MODEL.FPN.OUT_CHANNELS=32", "A=[[8], [9]]")
    assert experiment.seed == 1
    assert detector_overrides(_options(), ["seed=1"], "tiny") == ["seed=1"]


@pytest.mark.parametrize("name", BUILT_IN_DETECTORS)
@pytest.mark.parametrize("size", ["nano", "tiny", "small", "paper", "finetune"])
def test_a_built_in_detector_comes_with_what_belongs_to_it(name: str, size: str) -> None:
    experiment = preset(size).override(detector_overrides(_options("--detector", name), ["seed=1"], size))
    rcnn = name.endswith("rcnn")
    assert (experiment.detector.name, experiment.seed) == (name, 1)
    # The paper's teacher: no context object in an R-CNN and in FCOS with R-50.
    assert (experiment.method.context, experiment.method.detach_appearance) == (not rcnn and name != "fcos", rcnn)
    rates = {"nano": (0.1, 0.08), "tiny": (0.03, 0.015)}
    assert experiment.schedule.lr_per_16 == rates.get(size, (0.01, 0.02))[rcnn]
    # With the paper's 512 regions an image its heads take most of a step on a CPU.
    assert experiment.detector.regions == (64 if rcnn and size in ("nano", "tiny") else 512)


@pytest.mark.parametrize("name", BUILT_IN_DETECTORS)
def test_a_built_in_detector_changes_what_a_training_of_the_paper_has_otherwise(name: str) -> None:
    experiment = named_experiment("retinanet_r50_2x_ms").experiment
    changed = experiment.override(detector_overrides(_options("--detector", name), [], "retinanet_r50_2x_ms"))
    assert changed.detector.name == name
    assert changed.schedule.lr_per_16 == (0.02 if name.endswith("rcnn") else 0.01)


@pytest.mark.parametrize("name", BUILT_IN_DETECTORS)
def test_a_built_in_detector_starts_from_no_other_ones_weights(name: str) -> None:
    start = preset("finetune").override(detector_overrides(_options("--detector", name), [], "finetune")).detector
    if name in ("retinanet", "faster_rcnn", "mask_rcnn"):
        config, suffix = start.weights.removeprefix("detectron2://").split("_R_50_FPN_3x/")
        assert config.endswith(f"/{name}")
        assert _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX[f"{config}_R_50_FPN_3x"] == suffix
    else:
        assert start.weights == "none"
        assert start.initial_weights == start.backbone.weights != "none"


@pytest.mark.parametrize(
    ("arguments", "overrides", "words"),
    [
        (["--detector-set", "a=1"], [], "needs --detector"),
        (["--detector", ZOO], ["detector.source=torchvision:x"], "contradicts --detector:"),
        (["--detector", ZOO, "--detector-set", "a=1"], ["detector.overrides=[b=1]"], "contradicts --detector-set"),
        (["--detector", "fcos"], ["detector.name=poto"], "contradicts --detector:"),
        (["--detector", "fcos", "--detector-set", "a=1"], [], "fcos has --set detector.KEY=VALUE"),
    ],
)
def test_options_that_contradict_are_refused(arguments: list[str], overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        detector_overrides(_options(*arguments), overrides, "tiny")
