"""Weights of whole detectors: where published ones are, and torchvision's, which have other classes than the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.structures import Boxes, Instances
from torch import nn

from lgd.config.paper_recipes import named
from lgd.config.presets import ZOO_WEIGHTS
from lgd.detectors import weight_digests
from lgd.errors import InputError
from lgd.inference.evaluate_weights import main
from lgd.inference.scores_file import load_scores
from lgd.inference.whole_weights import InDataClasses, class_names_of, own_weights_of
from tests.helpers_data import write_coco
from tests.helpers_detectors import ZOO_RETINANET, source


def test_where_published_weights_come_from() -> None:
    assert own_weights_of(named("faster_rcnn_r50_1x_ss").experiment.detector) == ZOO_WEIGHTS["faster_rcnn"]
    with pytest.raises(InputError, match="detector retinanet on resnet101 has no published weights"):
        own_weights_of(named("retinanet_r101_2x_ms").experiment.detector)
    zoo = source(ZOO_RETINANET).model_copy(update={"weights": "config"})
    assert own_weights_of(zoo).endswith("COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl")
    theirs = zoo.model_copy(update={"source": "torchvision:ssd300_vgg16"})
    assert own_weights_of(theirs) == "torchvision://SSD300_VGG16_Weights.COCO_V1"
    assert own_weights_of(zoo.model_copy(update={"weights": "x.pth"})) == "x.pth"


def test_classes_of_torchvisions_weights() -> None:
    names = class_names_of("torchvision://RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1")
    assert (len(names), names[0], names[89], names.count("N/A")) == (90, "person", "toothbrush", 10)
    for other in ("torchvision://ResNet50_Weights.IMAGENET1K_V2", "torchvision://resnet50", "torchvision://x.pth"):
        assert class_names_of(other) == ()
    with pytest.raises(InputError, match="weights w know 2 classes, and not plane of the data's 2"):
        InDataClasses(nn.Identity(), ("car", "bus"), ("car", "plane"), "w")


def test_torchvisions_own_weights_are_scored_by_class_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have MS-COCO's 90 category ids for classes, the data two of these."""
    torch.manual_seed(0)
    model: Any = torchvision.models.get_model("retinanet_resnet50_fpn_v2", weights=None, weights_backbone=None)
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.1)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weight_digests, "_published", lambda *_: "")
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints/retinanet_resnet50_fpn_v2_coco-5905b1c5.pth")
    coco = write_coco(tmp_path / "coco")
    annotations = coco / "annotations/instances_val2017.json"
    found = json.loads(annotations.read_text())
    found["categories"] = [{"id": 3, "name": "dog"}, {"id": 7, "name": "person"}]
    annotations.write_text(json.dumps(found))
    arguments = ["--detector", "torchvision:retinanet_resnet50_fpn_v2", "--val-json", annotations, "--images", coco]
    arguments += ["--set", "data.test_size=64", "--set", "data.max_size=96", "--output", tmp_path / "out"]
    assert main([*map(str, arguments), "--save-detections"]) == 0
    scores = load_scores(tmp_path / "out/scores.json")
    assert scores.weights.source == "torchvision://RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1"
    detections = json.loads((tmp_path / "out/detections.json").read_text())
    assert detections
    assert {x["category_id"] for x in detections} <= {3, 7}


def test_detections_are_renamed_and_others_left_out() -> None:
    found = Instances((9, 9), pred_boxes=Boxes(torch.arange(12.0).view(3, 4)), scores=torch.tensor([0.9, 0.8, 0.7]))
    found.pred_classes = torch.tensor([2, 0, 1])
    model = InDataClasses(_Returns(found), ("person", "N/A", "dog"), ("dog", "person"), "w")
    (output,) = model([{}])
    assert output["instances"].pred_classes.tolist() == [0, 1]
    assert output["instances"].scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.pred_classes.tolist() == [2, 0, 1]


class _Returns(nn.Module):
    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def forward(self, _: Any) -> Any:
        return [{"instances": self.found}]
