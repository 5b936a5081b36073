"""The names of data sets, and the options that name one by its files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lgd.config.data_source import (
    COCO_2017,
    COCO_2017_COUNTS,
    absolute_source,
    add_data_arguments,
    is_coco_2017,
    located,
    parse_coco_files,
    portable_source,
    source_of,
)
from lgd.config.presets import named_experiment
from lgd.errors import InputError


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("shapes", "shapes"),
        ("coco", "coco"),
        ("coco-json:data", "coco-json:{here}/data"),
        ("coco-json:data#2017", "coco-json:{here}/data#2017"),
        ("voc:/data/./x", "voc:/data/x"),
        ("coco-files:a.json,sub/b.json,/images", "coco-files:{here}/a.json,{here}/sub/b.json,/images"),
        ("coco-files:a.json,/images", "coco-files:{here}/a.json,/images"),
        ("yolo:x/data.yaml", "yolo:{here}/x/data.yaml"),
        ("voc:", "voc:"),
        ("coco-json:s3://bucket/a/mine#2017", "coco-json:s3://bucket/a/mine#2017"),
        (
            "coco-files:a.json,s3://bucket/v.json,gs://bucket/x",
            "coco-files:{here}/a.json,s3://bucket/v.json,gs://bucket/x",
        ),
    ],
)
def test_paths_become_absolute(source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source(source) == expected.format(here=tmp_path)


def test_a_link_is_named_after_what_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/tables.md says to give MS-COCO: what the link points to is called something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "mscoco").mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "coco").symlink_to(tmp_path / "elsewhere" / "mscoco")
    assert absolute_source(COCO_2017) == f"coco-json:{tmp_path}/datasets/coco"
    assert portable_source(absolute_source(COCO_2017)) == COCO_2017
    # The directory above a link's is not that above what it points to.
    assert absolute_source("voc:datasets/coco/../voc") == f"voc:{tmp_path}/elsewhere/voc"


def test_the_papers_coco_may_lie_where_detectron2_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    assert located(COCO_2017) == COCO_2017, "it is not there either"
    (tmp_path / "sets" / "coco").mkdir(parents=True)
    assert located(COCO_2017) == absolute_source(COCO_2017) == "coco"
    assert portable_source("coco") == COCO_2017, "the same data"
    assert named_experiment("retinanet_r50_2x_ms").experiment.data.source == "coco"
    assert named_experiment("retinanet_r50_18k_ms_voc").experiment.data.source == "voc0712"
    # What a command names is what it gets.
    assert absolute_source("coco-json:mine") == f"coco-json:{tmp_path}/mine"
    (tmp_path / "datasets" / "coco").mkdir(parents=True)
    assert located(COCO_2017) == COCO_2017, "the paper's place comes first"
    assert named_experiment("retinanet_r50_2x_ms").experiment.data.source == COCO_2017


@pytest.mark.parametrize(
    ("source", "counts", "expected"),
    [
        ("coco", {}, True),
        ("coco-json:/x/datasets/coco", {}, True),
        ("coco-json:s3://bucket/mscoco", {}, False),
        ("coco-json:s3://bucket/mscoco", COCO_2017_COUNTS, True),
        ("coco-json:/shared/coco", {**COCO_2017_COUNTS, "train_objects": 849_947}, True),
        ("coco-json:/shared/coco", {**COCO_2017_COUNTS, "val_images": 4_999}, False),
        ("coco-json:/shared/coco", {**COCO_2017_COUNTS, "train_objects": 860_001}, False),
        ("coco-json:/x/datasets/coco", {**COCO_2017_COUNTS, "train_images": 80}, False),
    ],
)
def test_coco_is_known_by_its_counts_or_else_by_its_name(source: str, counts: dict[str, int], expected: bool) -> None:
    assert is_coco_2017(source, counts) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("shapes", "shapes"),
        ("coco-json:/home/me/data/coco", "coco-json:data/coco"),
        # Two sets of annotations of the same images are two data sets.
        ("coco-files:/x/a/t.json,/x/a/v.json,/x/y/images", "coco-files:a/t.json,a/v.json,y/images"),
        ("coco-json:s3://bucket/some/data/coco", "coco-json:data/coco"),
        ("coco-files:s3://b/x/a/t.json,/x/a/v.json,gs://b/y/images", "coco-files:a/t.json,a/v.json,y/images"),
    ],
)
def test_sources_of_several_machines_compare(source: str, expected: str) -> None:
    assert portable_source(source) == expected


@pytest.mark.parametrize("rest", ["a.json", "a.json,", "a,b,c,d", ",b,c"])
def test_three_paths_are_needed(rest: str) -> None:
    with pytest.raises(InputError, match="three paths are needed, coco-files:TRAIN.json,VAL.json,IMAGES"):
        parse_coco_files(rest)
    with pytest.raises(InputError, match="three paths are needed"):
        absolute_source(f"coco-files:{rest}")


def _source(*arguments: str, given: str | None = None) -> str | None:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    return source_of(parser.parse_args(arguments), given)


def test_options_name_a_data_set() -> None:
    files = ["--train-json", "t.json", "--val-json", "v.json", "--images", "i"]
    assert _source(*files) == "coco-files:t.json,v.json,i"
    assert _source(*files[:2], *files[4:], "--val-fraction", "0.2") == "coco-files:t.json,i"
    assert _source(given="voc:x") == "voc:x"
    assert _source() is None
    with pytest.raises(InputError, match="--val-json and --images missing"):
        _source(*files[:2])
    with pytest.raises(InputError, match="name two data sets"):
        _source(*files, given="voc:x")
    with pytest.raises(InputError, match="--images 'a,b': a path without commas"):
        _source(*files[:-1], "a,b")
