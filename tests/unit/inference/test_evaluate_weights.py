"""lgd eval: the scores of detectors that are there already."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablations.command import main as lgd
from analysis.load import load_runs
from lgd.config.experiment import Experiment, settings
from lgd.config.paper_recipes import named
from lgd.data.catalog import load_dataset
from lgd.detectors import build_detector
from lgd.detectors.weight_files import load_tensors
from lgd.evaluation.evaluate import score
from lgd.files import DiskFullError
from lgd.inference import score_detector
from lgd.inference.evaluate_weights import main
from lgd.inference.scores_file import load_scores
from lgd.results.record import load
from tests.helpers import quick_experiment
from tests.helpers_data import edit_json, write_coco
from tests.helpers_detectors import NARROW_RETINANET, ZOO_RETINANET, source, torchvision_retinanet

CLASSES = 7
"""Of the synthetic images."""

NAME = "retinanet_r50_2x_ms"

NOT_SET = ("detector.source", "detector.overrides", "detector.weights")

SMALL = [
    f"{key}={json.dumps(value)}"
    for key, value in settings(quick_experiment()).items()
    if key.startswith(("detector.", "data.", "threads")) and key not in NOT_SET
]
"""Settings with which this one of the paper's trainings has the detector and the data of ``trained``."""

SETS = [y for x in SMALL for y in ("--set", x)]
DATA = [y for x in SMALL if not x.startswith("detector.") for y in ("--set", x)]


def untrained(experiment: Experiment, classes: int = CLASSES) -> nn.Module:
    """A detector that detects something all the same: all of its scores are around a half."""
    torch.manual_seed(0)
    detector: Any = build_detector(experiment.detector, classes, experiment.data)
    detector.head.cls_score.bias.data.zero_()
    return detector


@pytest.fixture(scope="module")
def weights(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the model zoo keeps them: arrays in a pickle, with what detectors of today do not have."""
    state: dict[str, Any] = {name: x.numpy() for name, x in load_tensors(trained / "student.pth")["model"].items()}
    state["anchor_generator.cell_anchors.0"] = state["pixel_mean"] = torch.zeros(3).numpy()
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    return path


def changed(weights: Path, path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    state = {name: torch.as_tensor(x) for name, x in pickle.loads(weights.read_bytes())["model"].items()}
    torch.save({"model": edit(state)}, path)
    return path


def one_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(x) for x in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_student_has_the_scores_of_its_record(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the digit, from its directory and from its file alone; analysis does not count either."""
    record = load(trained / "record.json")
    assert record.student is not None
    assert record.student.AP
    own, alone = tmp_path / "own", tmp_path / "alone"
    assert lgd(["eval", str(trained), "--output", str(own), "--save-detections"]) == 0
    said = capsys.readouterr().out
    assert f"box  {record.student.AP:8.1f}" in said
    found = load_scores(own / "scores.json")
    assert found.box == record.student
    assert found.mask is None
    assert found.data == record.data
    assert found.command == f"lgd eval {trained} --output {own} --save-detections"
    detections = json.loads((own / "detections.json").read_text())
    assert score(load_dataset(record.experiment.data), detections).box == record.student

    assert [x.record for x in load_runs(tmp_path)] == []
    assert lgd(["report", str(own)]) == 2
    assert "no trials/*/record.json in it" in capsys.readouterr().err

    arguments = [NAME, *SETS, "--weights", str(trained / "student.pth"), "--output", str(alone), "--batch", "2"]
    assert main(arguments) == 0
    again = load_scores(alone / "scores.json")
    assert (again.box, again.weights.sha256) == (found.box, found.weights.sha256)
    assert again.weights.tensors == found.weights.tensors > 100
    assert again.batch == 2


def test_what_was_trained_in_bf16_is_scored_in_float32(trained: Path, tmp_path: Path) -> None:
    """As its own evaluations were."""
    run = shutil.copytree(trained, tmp_path / "run")
    edit_json(run / "student.json", lambda x: x["experiment"].update(precision="bf16"))
    assert main([str(run), "--output", str(tmp_path / "out")]) == 0
    found, record = load_scores(tmp_path / "out/scores.json"), load(trained / "record.json")
    assert found.settings["precision"] == "fp32"
    assert found.box == record.student


def test_files_of_others(trained: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One as the model zoo's, and one of the authors' code."""
    record = load(trained / "record.json")
    arguments = [NAME, *SETS, "--output"]
    assert main([*arguments, str(tmp_path / "a"), "--weights", str(weights)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "the paper reports box AP baseline" in said.out
    assert said.out.count("on MS-COCO val2017, which this data is not") == len(named(NAME).reported)
    assert load_scores(tmp_path / "a/scores.json").box == record.student

    def by_the_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The FPN under two names, the bottom-up network outside of it, and the teacher."""
        found = {"teacher.head.cls_score.weight": torch.zeros(9), "adapter.distill.0.weight": torch.zeros(2)}
        for name, x in state.items():
            if name.startswith("backbone.bottom_up."):
                found[name.replace("backbone.bottom_up.", "student.raw_backbone.")] = x
            else:
                found[f"student.{name}"] = x
            if name.startswith("backbone.fpn"):
                found[name.replace("backbone.", "student.fpn.")] = x
        return found

    theirs = changed(weights, tmp_path / "authors.pth", by_the_authors)
    assert main([*arguments, str(tmp_path / "b"), "--weights", str(theirs)]) == 0
    assert capsys.readouterr().err == ""
    assert load_scores(tmp_path / "b/scores.json").box == record.student


def test_more_tensors_than_the_detector_has_are_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = changed(weights, tmp_path / "more.pth", lambda x: {**x, "roi_heads.mask_head.deconv.weight": torch.ones(3)})
    arguments = [NAME, *SETS, "--output", str(tmp_path), "--weights", str(more)]
    assert main(arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "note: 1 tensors of the file are not this detector's, such as roi_heads.mask_head.deconv.weight"


def test_masks_are_scored_where_the_data_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, coco = "mask_rcnn_r50_1x_ss", write_coco(tmp_path / "coco")
    kept = [x for x in SMALL if not x.startswith(("detector.name", "detector.head_norm", "data.sh", "data.source"))]
    changes = [*kept, "detector.fc_dim=16", f"data.source=coco-json:{coco}"]
    torch.manual_seed(0)
    detector = build_detector(named(name).experiment.override(changes).detector, 2)
    torch.save({"model": detector.state_dict()}, tmp_path / "w.pth")
    arguments = [name, *(y for x in changes for y in ("--set", x)), "--weights", tmp_path / "w.pth", "--output"]
    assert main([str(x) for x in (*arguments, tmp_path / "out")]) == 0
    found = load_scores(tmp_path / "out/scores.json")
    assert found.mask is not None
    assert found.mask.AP is not None
    assert "\nmask " in capsys.readouterr().out
    annotations = coco / "annotations/instances_val2017.json"
    contents = json.loads(annotations.read_text())
    del contents["annotations"][0]["segmentation"]
    annotations.write_text(json.dumps(contents))
    assert "has no segmentation" in one_line(capsys, *arguments, tmp_path / "none")


@pytest.mark.parametrize("built_in", [True, False])
def test_weights_that_do_not_fit_are_one_line(
    built_in: bool, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is scored that keeps a random tensor."""
    if built_in:
        experiment, arguments = quick_experiment(), [NAME, *SETS]
    else:
        experiment = Experiment(detector=source(ZOO_RETINANET, *NARROW_RETINANET), data=quick_experiment().data)
        own = [y for x in NARROW_RETINANET for y in ("--detector-set", x)]
        arguments = ["--detector", ZOO_RETINANET, *own, *DATA]
    state = untrained(experiment).state_dict()
    label = experiment.detector.label
    arguments += ["--output", str(tmp_path / "out"), "--weights"]

    def refused(kept: dict[str, Tensor]) -> str:
        torch.save({"model": kept}, tmp_path / "w.pth")
        return one_line(capsys, *arguments, tmp_path / "w.pth")

    other = untrained(experiment, classes=3).state_dict()
    line = refused(other)
    assert f"do not fit detector {label} for the data's {CLASSES} classes: 2 of its" in line
    assert "another shape (head.cls_score.weight 27x16x3x3 for 63x16x3x3, head.cls_score.bias 27 for 63)" in line
    line = refused({k: x for k, x in state.items() if not k.startswith("head.bbox")})
    assert "are missing or of another shape (head.bbox_subnet.0.weight missing, head.bbox_subnet.0.bias missing" in line
    line = refused({k: x for k, x in state.items() if k.startswith("backbone.bottom_up.")})
    assert "(head.cls_subnet.0.weight missing" in line or "(backbone.fpn_lateral3.weight missing" in line
    line = refused({k: x for k, x in state.items() if not k.startswith("backbone.bottom_up.res")})
    assert "tensors" in line
    assert "res2.0" in line
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_one_line_before_data_is_read(
    trained: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr("lgd.data.catalog.load_dataset", read)
    damaged = tmp_path / "x.pkl"
    for arguments, words in (
        ([], "say what to score: a training of the paper, a training's directory, or --detector"),
        (["retinanet_r50_2x_mx"], "did you mean 'retinanet_r50_2x_ms'?"),
        (["results/none"], "results/none does not exist"),
        ([tmp_path], "holds no finished training: student.json is missing"),
        ([trained, "--weights", weights], f"--weights {weights}: {trained} has its own"),
        ([trained, "--set", "detector.channels=8"], "detector.channels=8: a trained student's detector is as it is"),
        ([trained, "--precision", "fp16"], "fp16 needs a GPU"),
        ([NAME, "--weights", damaged], f"there is no file {damaged}"),
        ([NAME, "--weights", "none"], "--weights none: random values are not scored"),
        ([NAME, "--weights", "s3://x/y.pkl"], "use none, a file, or one of detectron2://"),
        ([NAME, "--batch", "0"], "--batch 0: at least 1"),
        ([NAME, "--output", "s3://x/y"], "argument --output: s3://x/y: a directory on this machine is needed"),
        ([NAME, "--precision", "fp64"], "invalid choice: 'fp64'"),
        ([NAME, "--precision", "fp16", "--device", "cpu"], "precision fp16 needs a GPU"),
        ([NAME, "--precision", "bf16", "--set", "precision=fp32"], "contradicts --precision bf16"),
        ([NAME, "--set", "data.nonsense=1"], "no setting 'data.nonsense'"),
        ([NAME, "--detector-set", "a=1"], "--detector-set a=1 needs --detector"),
        (["atss_r50_1x_ms"], "detector atss on resnet50 has no published weights here: name some with --weights"),
        (["--detector", "zoo:COCO-Detection/fcos_R_50_FPN_1x.py"], "name some with --weights"),
        (["--detector", "torchvision:nonsense"], "torchvision has no such detector"),
    ):
        assert words in one_line(capsys, *arguments)


def test_a_damaged_file_and_one_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pkl"
    for content in (b"no pickle", pickle.dumps({"model": {"a": Path("x")}})):
        path.write_bytes(content)
        assert "is damaged or no checkpoint" in one_line(capsys, NAME, *SETS, "--weights", path)


def test_a_student_on_other_data(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its classes must be the data's, by number and order."""
    coco = write_coco(tmp_path / "coco")
    line = one_line(capsys, trained, "--data", f"coco-json:{coco}", "--output", tmp_path / "out")
    assert line == f"error: the student knows 7 classes, the data coco-json:{coco} has 2"
    annotations = coco / "annotations/instances_val2017.json"
    found = json.loads(annotations.read_text())
    names = json.loads((trained / "student.json").read_text())["class_names"]
    numbers = [3, 7, 8, 9, 10, 11, 12]
    found["categories"] = [{"id": i, "name": x} for i, x in zip(numbers, names, strict=True)]
    annotations.write_text(json.dumps(found))
    # Of the two files that a split has, the one to evaluate on is enough.
    data = ["--val-json", annotations, "--images", coco, "--output", tmp_path / "out"]
    assert main([str(x) for x in (trained, *data)]) == 0
    assert load_scores(tmp_path / "out/scores.json").data["val_images"] == 3
    found["categories"] = [{"id": i, "name": x} for i, x in zip(numbers, names[::-1], strict=True)]
    annotations.write_text(json.dumps(found))
    assert "the same classes in another order" in one_line(capsys, trained, *data)
    found["categories"] = [{"id": i, "name": x} for i, x in zip(numbers, ["cell", *names[1:]], strict=True)]
    annotations.write_text(json.dumps(found))
    capsys.readouterr()
    assert main([str(x) for x in (trained, *data[:-1], tmp_path / "other")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: class 0 is {names[0]!r} for the student and 'cell' in the data")


def test_how_its_own_data_was_split_says_nothing_of_other_data(trained: Path, tmp_path: Path) -> None:
    student = shutil.copytree(trained, tmp_path / "student")
    described = json.loads((student / "student.json").read_text())
    described["experiment"]["data"] |= {"val_fraction": 0.25, "split_seed": 3, "resplit": True}
    (student / "student.json").write_text(json.dumps(described))
    coco = write_coco(tmp_path / "coco")
    for path in coco.glob("annotations/*.json"):
        found = json.loads(path.read_text())
        found["categories"] = [{"id": i, "name": x} for i, x in enumerate(described["class_names"], 1)]
        path.write_text(json.dumps(found))
    arguments = (student, "--data", f"coco-json:{coco}", "--output", tmp_path / "out")
    assert main([str(x) for x in arguments]) == 0
    found = json.loads((coco / "annotations/instances_val2017.json").read_text())
    assert load_scores(tmp_path / "out/scores.json").data["val_images"] == len(found["images"])


def test_scores_of_something_else_are_not_replaced(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [trained, "--output", tmp_path]
    assert main([str(x) for x in arguments]) == 0
    first = load_scores(tmp_path / "scores.json")
    assert main([str(x) for x in arguments]) == 0
    assert load_scores(tmp_path / "scores.json").box == first.box
    said = one_line(capsys, *arguments, "--precision", "bf16")
    assert said.endswith("scores.json has the scores of other weights, data or settings: choose another --output")
    (tmp_path / "scores.json").write_text("{}")
    assert "not the scores of lgd eval" in one_line(capsys, *arguments)
    (tmp_path / "file").touch()
    assert "--output" in one_line(capsys, trained, "--output", tmp_path / "file" / "x")


def test_scores_whose_file_cannot_be_written_are_printed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the disk is full after the small file, that one is there."""

    def write_but(full: str, path: Path, text: str) -> None:
        if path.name == full:
            raise DiskFullError(errno.ENOSPC, "No space left on device (0.0 MiB free)", str(path))
        path.write_text(text)

    for name in ("scores.json", "detections.json"):
        monkeypatch.setattr("lgd.inference.evaluate_weights.write_text", partial(write_but, name))
        assert main([str(trained), "--output", str(tmp_path), "--save-detections"]) == 2
        said = capsys.readouterr()
        assert "\nbox " in said.out
        assert said.err == f"error: {tmp_path}/{name}: No space left on device (0.0 MiB free)\n"
        assert (tmp_path / "scores.json").exists() is (name == "detections.json")


def test_an_interrupt_leaves_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(score_detector.Progress, "__call__", interrupted)
    assert main([str(trained), "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def returned(num_classes: int) -> nn.Module:
    """A detector of one's own, as it is to be scored."""
    torch.manual_seed(0)
    return torchvision_retinanet(num_classes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_function_returns_the_detector_as_it_is(precision: str, tmp_path: Path) -> None:
    arguments = ["--detector", f"{__name__}:returned", "--output", str(tmp_path), "--precision", precision]
    assert main([*arguments, *DATA]) == 0
    found = load_scores(tmp_path / "scores.json")
    assert found.weights.model_dump() == {"source": "", "sha256": "", "tensors": 0}
    assert found.settings["precision"] == precision
    assert found.box.AP is not None
    torch.save(returned(CLASSES).state_dict(), tmp_path / "w.pth")
    again = ["--detector", f"{__name__}:returned", "--output", str(tmp_path / "b"), "--precision", precision]
    assert main([*again, *DATA, "--weights", str(tmp_path / "w.pth")]) == 0
    assert load_scores(tmp_path / "b/scores.json").box == found.box
