"""Detectors from elsewhere as settings: what names one, what a setting means for it, and when code may run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd.config.detector_source import (
    absolute_detector,
    check_named_again,
    kind_of,
    portable_detector,
    runs_code,
)
from lgd.config.experiment import Experiment
from lgd.config.presets import preset
from lgd.errors import InputError

ZOO = "zoo:COCO-Detection/retinanet_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("built-in", "built-in", False),
        (ZOO, "yaml", False),
        ("zoo:COCO-Detection/fcos_R_50_FPN_1x.py", "lazy", False),
        ("/home/me/config.yaml", "yaml", False),
        ("my/config.py", "lazy", True),
        ("torchvision:fcos_resnet50_fpn", "torchvision", False),
        ("package.module:function", "function", True),
    ],
)
def test_what_names_a_detector(name: str, kind: str, code: bool) -> None:
    assert (kind_of(name), runs_code(name)) == (kind, code)
    assert Experiment().override([f"detector.source={name}"]).detector.source == name


@pytest.mark.parametrize("name", ["retinanet", "zoo:COCO-Detection", "package.module:", "a file.txt"])
def test_what_names_none_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(InputError, match="a config file .* is needed"):
        kind_of(name)
    with pytest.raises(InputError, match=r"^detector\.source: .* is needed"):
        Experiment().override({"detector.source": name})


def test_paths_are_absolute_in_a_training_and_short_in_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_detector("my/config.py") == str(tmp_path / "my" / "config.py")
    assert absolute_detector(ZOO) == ZOO
    assert portable_detector(str(tmp_path / "my" / "config.py")) == "my/config.py"
    settings = Experiment().override({"detector.source": "/a/b/Config 2.yaml"}).detector
    assert (settings.label, settings.slug, settings.backbone_label) == ("b/Config 2.yaml", "b-config-2-yaml", "")


def test_another_source_starts_from_its_own_settings() -> None:
    """Nothing of the preset's detector stays: neither its weights nor its width."""
    base = preset("finetune")
    assert base.detector.weights != "none"
    ours = base.override({"detector.source": ZOO, "detector.overrides": ["MODEL.FPN.OUT_CHANNELS=32"]})
    assert (ours.detector.weights, ours.detector.initial_weights) == ("config", "config")
    assert ours.detector.channels == Experiment().detector.channels
    # It travels to a worker and back, and what is set later adds to it.
    again = Experiment.model_validate(ours.model_dump(mode="json")).override(["detector.weights=none"])
    assert again.detector.overrides == ("MODEL.FPN.OUT_CHANNELS=32",)
    assert again.detector.initial_weights == "none"
    assert again.override({"detector.source": "built-in"}).detector == Experiment().detector


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([f"detector.source={ZOO}", "detector.channels=32"], r"detector\.channels is a setting of the built-in"),
        # Also where it is the default: it would be taken to have an effect.
        ([f"detector.source={ZOO}", "detector.channels=256"], r"detector\.channels is a setting of the built-in"),
        ([f"detector.source={ZOO}", "detector.backbone.width=32"], r"detector\.backbone\.width is a setting of the"),
        (["detector.overrides=[a=1]"], r"detector\.overrides is for a detector from elsewhere"),
        (["detector.bottom_up=backbone"], r"detector\.bottom_up is for a detector from elsewhere"),
        (["detector.adapt_channels=true"], r"detector\.adapt_channels is for a detector from elsewhere"),
        (["detector.weights=config"], r"detector\.weights config is for a detector from elsewhere"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        preset("tiny").override(settings)


def test_code_runs_only_where_the_command_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "config.py")
    for safe in (ZOO, "torchvision:fcos_resnet50_fpn", "/a/config.yaml"):
        check_named_again([safe], None, "results")
    check_named_again([path], path, "results")
    check_named_again(["a.b:c"], "a.b:c", "results")
    for named, words in ((None, "results names the detector .*config.py, which is Python"), ("a.b:d", "trainings of")):
        with pytest.raises(InputError, match=words):
            check_named_again([path], named, "results")
    both = ["a.b:c", ZOO, "teachers:large"]
    check_named_again(both, "a.b:c,teachers:large", "results")
    for named in (None, "a.b:c", ZOO):
        with pytest.raises(InputError, match=r"a\.b:c and teachers:large.*say --detector a\.b:c,teachers:large to run"):
            check_named_again(both, named, "results")
    comma = tmp_path / "a,b.py"
    comma.touch()
    check_named_again([str(comma)], str(comma), "results")


def test_settings_are_read_as_they_are_written(capsys: pytest.CaptureFixture[Any]) -> None:
    """lgd train --show prints what can be set, and of a detector from elsewhere nothing that it does not read."""
    from lgd.training.__main__ import main

    assert main(["finetune", "--show", "--detector", ZOO, "--detector-set", "MODEL.FPN.OUT_CHANNELS=32"]) == 0
    shown = [x for x in capsys.readouterr().out.splitlines() if x.startswith("detector.")]
    assert shown[:2] == [f"detector.source={ZOO}", 'detector.overrides=["MODEL.FPN.OUT_CHANNELS=32"]']
    assert [x.partition("=")[0] for x in shown] == [
        "detector.source", "detector.overrides", "detector.bottom_up", "detector.adapt_channels", "detector.weights",
    ]  # fmt: skip
    assert Experiment().override(shown).detector == preset("finetune").override(shown).detector
