"""The names of data sets, and the options that name one by its files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lgd.config.data_source import absolute_source, add_data_arguments, parse_coco_files, portable_source, source_of
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
