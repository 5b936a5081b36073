"""experiment.method is a union by name: its own settings, what two methods share, and how older records wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd.config.experiment import Backbone, Experiment, parse, settings
from lgd.config.frozen_teacher import FrozenTeacherMethod, deeper
from lgd.config.grids import experiment_of, grid, plan
from lgd.config.method import BUILT_IN
from lgd.config.paper import paper
from lgd.config.presets import NANO, PAPER
from lgd.errors import InputError

OLD_LGD: dict[str, Any] = {
    "encoder": True, "adapter": False, "mapper": True, "variant": "appearance_queries", "context": True,
    "detach_appearance": False, "distill_weight": 0.5, "instructive_weight": 1.0, "lr_factor": 1.0,
}  # fmt: skip
OLD_FGFI: dict[str, Any] = {
    "backbone": {"name": "resnet34", "width": 16, "norm": "BN", "weights": "none", "freeze_at": 0},
    "steps": 70, "seed": 2, "levels": "fpn", "threshold": 0.4, "weight": 0.02, "relu": False, "from_step": 20,
}  # fmt: skip


def _old(name: str) -> Experiment:
    """As a record of before the union holds it: every method's settings side by side."""
    described = NANO.model_dump(mode="json")
    return parse({**described, "method": {"name": name, **OLD_LGD, "fgfi": OLD_FGFI}})


def test_older_records_are_read() -> None:
    assert _old("baseline").method == NANO.override({"method.name": "baseline"}).method
    assert _old("lgd").method == NANO.override(["method.adapter=false", "method.distill_weight=0.5"]).method
    fgfi: Any = _old("fgfi").method
    assert (fgfi.levels, fgfi.threshold, fgfi.weight, fgfi.relu, fgfi.from_step) == ("fpn", 0.4, 0.02, False, 20)
    assert (fgfi.teacher.steps, fgfi.teacher.seed, fgfi.distill_weight) == (70, 2, 0.5)
    assert fgfi.teacher.backbone.name == "resnet34"
    # Without the group, as before FGFI was there.
    described = {**NANO.model_dump(mode="json"), "method": {"name": "lgd", **OLD_LGD}}
    assert parse(described) == _old("lgd")


def test_a_record_of_two_equal_students_is_still_read() -> None:
    """Training them is refused (lgd/methods/dml), and no more than that."""
    assert NANO.override({"method.name": "dml", "method.peer_seed": 0}).method.peer_seed == 0


def test_older_settings_are_followed() -> None:
    old = ["method.name=fgfi", "method.fgfi.levels=all", "method.fgfi.seed=3", "method.fgfi.backbone.width=8"]
    new = ["method.name=fgfi", "method.levels=all", "method.teacher.seed=3", "method.teacher.backbone.width=8"]
    assert NANO.override(old) == NANO.override(new)
    assert NANO.override(new).has_setting("method.fgfi.backbone.width")


def test_another_method_starts_from_its_own_defaults_and_keeps_what_both_have() -> None:
    lgd = NANO.override(["method.adapter=false", "method.distill_weight=0.5"])
    pkd = lgd.override(["method.name=pkd", "method.teacher.steps=70", "method.weight=3"])
    assert "method.adapter" not in settings(pkd)
    assert settings(pkd)["method.distill_weight"] == 0.5
    cwd: Any = pkd.override(["method.name=cwd"]).method
    # The weight of another loss says nothing of this one's.
    assert (cwd.teacher.steps, cwd.weight) == (70, NANO.override(["method.name=cwd"]).method.weight)
    assert pkd.override(["method.name=lgd"]).method == NANO.override(["method.distill_weight=0.5"]).method
    with pytest.raises(InputError, match="no setting 'method.encoder'"):
        pkd.override(["method.encoder=false"])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_has_a_description_that_reads_back(name: str) -> None:
    experiment = NANO.override({"detector.name": "faster_rcnn"}).override({"method.name": name})
    assert parse(experiment.model_dump(mode="json")) == experiment
    assert experiment.override({"seed": 1}).method == experiment.method
    assert hash(experiment) == hash(parse(experiment.model_dump(mode="json")))


def test_an_automatic_teacher_is_one_backbone_deeper_and_follows_the_student() -> None:
    pkd = NANO.override(["method.name=pkd"])
    assert pkd.teacher is not None
    assert pkd.teacher.detector.backbone == deeper(NANO.detector.backbone)
    assert pkd.teacher.detector.backbone.name == "resnet34"
    wider = pkd.override(["method.teacher.backbone.width=8", "detector.backbone.name=resnet34"])
    assert wider.teacher is not None
    assert (wider.teacher.detector.backbone.name, wider.teacher.detector.backbone.width) == ("resnet50", 8)
    assert (
        wider.override(["method.teacher.backbone=auto"]).teacher
        == pkd.override(["detector.backbone.name=resnet34"]).teacher
    )
    paper_teacher = PAPER.override(["method.name=pkd"]).teacher
    assert paper_teacher is not None
    assert paper_teacher.detector.backbone.weights.endswith("R-101.pkl")
    fcos = pkd.override(["method.teacher.detector=fcos"]).teacher
    assert fcos is not None
    assert (fcos.detector.name, fcos.method.name) == ("fcos", "baseline")
    with pytest.raises(InputError, match=r"method.teacher.detector: one of retinanet, .*or detector 'yolo'"):
        pkd.override(["method.teacher.detector=yolo"])


@pytest.mark.parametrize(
    ("name", "weights", "deeper_name", "deeper_weights"),
    [
        ("resnet18", "none", "resnet34", "none"),
        ("resnet18", "torchvision://resnet18", "resnet34", "torchvision://resnet34"),
        ("resnet50", "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "resnet101", "/MSRA/R-101.pkl"),
        ("resnet101", "/mine.pth", "resnext101_32x8d", "/FAIR/X-101-32x8d.pkl"),
        ("resnext101_32x8d", "none", "resnext101_32x8d", "none"),
        ("swin_t", "torchvision://swin_t", "resnet101", "torchvision://resnet101"),
    ],
)
def test_a_deeper_backbone_has_weights_of_the_same_origin(
    name: str, weights: str, deeper_name: str, deeper_weights: str
) -> None:
    found = deeper(Backbone.model_validate({"name": name, "weights": weights}))
    assert found.name == deeper_name
    assert found.weights.endswith(deeper_weights)


def test_weights_of_another_origin_have_their_own_statistics() -> None:
    named = {"name": "resnet50", "pixel_std": "imagenet"}
    assert deeper(Backbone.model_validate({**named, "weights": "/mine.pth"})).pixel_std != "imagenet"
    same = Backbone.model_validate({**named, "weights": "torchvision://resnet50"})
    assert deeper(same).pixel_std == same.pixel_std


def test_settings_of_one_method_do_not_disturb_another_arm(tmp_path: Path) -> None:
    """``--set method.teacher.steps=70`` in a grid of several methods is of those that have a teacher."""
    chosen = [x for x in grid("methods", "nano").arms if x.name in ("baseline", "LGD", "PKD", "FGD")]
    overrides = ["method.teacher.steps=70", "method.encoder=false", "method.gamma=0.1"]
    found = {arm.name: settings(experiment_of(arm, NANO, overrides)) for arm in chosen}
    assert {name for name, x in found.items() if x.get("method.teacher.steps") == 70} == {"PKD", "FGD"}
    assert {name for name, x in found.items() if x.get("method.encoder") is False} == {"LGD"}
    assert found["FGD"]["method.gamma"] == 0.1
    with pytest.raises(InputError, match="no setting 'method.gama'"):
        plan(grid("methods", "nano"), NANO, 1, ["method.gama=0.1"], tmp_path)


def test_published_figures_are_of_methods_that_are_here_and_in_no_table_of_the_papers() -> None:
    assert {x.method for x in paper().published} <= set(BUILT_IN)
    pkd = [str(x) for x in paper().published_of("pkd")]
    assert pkd[0] == "37.4 to 40.8 (RetinaNet R-50, 2x ss, from RetinaNet X-101)"
    assert paper().published_of("pkd")[0].gain == pytest.approx(3.4)
    for published in paper().published:
        method = NANO.override({"method.name": published.method}).method
        if isinstance(method, FrozenTeacherMethod):
            assert published.inherits is (method.authors_inherit != "none")
    assert paper().published_of("lgd") == ()
