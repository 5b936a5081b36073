"""Data in object storage: the same data as in a directory, read through a cache; and a store that fails."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgd.data import image_sizes, validate
from lgd.data.catalog import register, resolve
from lgd.data.dataset import DataSet
from lgd.data.images import read_image
from lgd.data.layout import Problem
from lgd.data.loaders import val_loader
from lgd.data.sources import find_dataset
from lgd.errors import InputError
from lgd.storage import file_cache, object_path
from lgd.storage.file_cache import SIZE_VARIABLE
from lgd.storage.object_path import ObjectPath
from lgd.storage.store import PATIENCE_VARIABLE, StorageError, Store
from lgd.training import run as training
from tests.helpers import quick_experiment
from tests.helpers_data import SMALL_SHAPES, edit_json, write_coco, write_roboflow
from tests.helpers_loaders import assert_equal, batches
from tests.helpers_storage import BUCKET, Faults


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no data that is taken to be what it was."""
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_path, "KNOWN_FOR", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def prefix(faults: Faults, tmp_path: Path) -> str:
    """A place in the bucket of the test's own."""
    return f"s3://{BUCKET}/{tmp_path.name}/data/mine"


def _upload(root: Path, url: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            Store(url, 10).upload(path, path.relative_to(root).as_posix())


def _images_asked_for(faults: Faults) -> list[str]:
    return [x for x in faults.seen if x.endswith(".jpg")]


def _find(source: str, **options: Any) -> DataSet:
    return find_dataset(source, shapes=SMALL_SHAPES, **options)


def _noisy(root: Path) -> Path:
    """COCO's layout with images of 200 kB, and two that cannot be used: one is cut off, one is of another size."""
    write_coco(root)
    for path in (root / "train2017").glob("*.jpg"):
        size = Image.open(path).size
        Image.effect_noise((10 * size[0], 10 * size[1]), 90).save(path, quality=95)
        assert path.stat().st_size > 2 * object_path.HEAD

    def enlarge(found: dict[str, Any]) -> None:
        for image in found["images"]:
            image.update(width=10 * image["width"], height=10 * image["height"])
        found["images"][0]["width"] += 1
        for annotation in found["annotations"]:
            annotation.pop("segmentation")

    edit_json(root / "annotations" / "instances_train2017.json", enlarge)
    cut_off = root / "train2017" / "000000000003.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    return root


@pytest.mark.parametrize("write", [write_coco, write_roboflow, _noisy])
def test_it_is_the_same_data_as_in_a_directory(
    write: Callable[[Path], Path], faults: Faults, prefix: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "data" / "mine")
    _upload(root, prefix)
    there, here = _find(f"coco-json:{prefix}"), _find(f"coco-json:{root}")
    assert (there.fingerprint, there.counts, there.layout.dropped) == (
        here.fingerprint,
        here.counts,
        here.layout.dropped,
    )
    assert (str(there.root), str(there.layout.train_images)) == (
        prefix, str(here.layout.train_images).replace(str(root), prefix),
    )  # fmt: skip
    assert there.layout.train_json.read_bytes() == here.layout.train_json.read_bytes()
    problems: tuple[list[Problem], list[Problem]] = ([], [])
    _find(f"coco-json:{prefix}", problems=problems[0])
    _find(f"coco-json:{root}", problems=problems[1])
    assert list(map(str, problems[0])) == [str(x).replace(str(root), prefix) for x in problems[1]] != []


def test_annotations_are_fetched_again_where_they_have_changed_and_images_heads_are_read_once(
    faults: Faults, prefix: str, tmp_path: Path
) -> None:
    root = _noisy(tmp_path / "data")
    _upload(root, prefix)
    faults.seen.clear()
    first = _find(f"coco-json:{prefix}")
    # Of each its head and its end; of the one that is cut off the rest, too.
    assert len([x for x in faults.seen if "/train2017/" in x and x.endswith(".jpg")]) == 7
    faults.seen.clear()
    assert _find(f"coco-json:{prefix}").fingerprint == first.fingerprint
    assert [x for x in faults.seen if x.startswith("GET") and x.endswith((".json", ".jpg"))] == []

    edit_json(root / "annotations" / "instances_val2017.json", lambda x: x["annotations"].pop())
    Image.new("RGB", (400, 480)).save(root / "train2017" / "000000000001.jpg")
    _upload(root, prefix)
    faults.seen.clear()
    second = _find(f"coco-json:{prefix}")
    assert second.fingerprint == _find(f"coco-json:{root}").fingerprint != first.fingerprint
    asked = [x for x in faults.seen if x.startswith("GET") and x.endswith((".json", ".jpg"))]
    assert [x.rpartition("/")[2] for x in asked] == ["instances_val2017.json", "000000000001.jpg"]


def test_files_by_their_urls_and_a_part_for_validation(faults: Faults, prefix: str, tmp_path: Path) -> None:
    from lgd.data.split import ValSplit

    root = write_coco(tmp_path / "data")
    _upload(root, prefix)
    names = [f"annotations/instances_{x}2017.json" for x in ("train", "val")]
    here = _find(f"coco-files:{root / names[0]},{root / names[1]},{root}")
    for source in (
        f"{prefix}/{names[0]},{prefix}/{names[1]},{prefix}",
        f"{root / names[0]},{root / names[1]},{prefix}",
    ):
        assert _find(f"coco-files:{source}").fingerprint == here.fingerprint
    split = ValSplit(0.5, 0)
    there = _find(f"coco-files:{prefix}/{names[0]},{prefix}", split=split)
    assert there.fingerprint == _find(f"coco-files:{root / names[0]},{root}", split=split).fingerprint
    assert _find(f"coco-json:{prefix}#2017").fingerprint == here.fingerprint
    assert _find(f"coco-json:file://{root}").fingerprint == here.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_directory_and_each_image_is_asked_for_once(
    workers: int, faults: Faults, prefix: str, tmp_path: Path
) -> None:
    """Worker processes are forked from one that has asked the store already."""
    root = write_coco(tmp_path / "data")
    _upload(root, prefix)
    there = pickle.loads(pickle.dumps(_find(f"coco-json:{prefix}")))
    register(there)
    expected = batches(resolve(f"coco-json:{root}", shapes=SMALL_SHAPES), 4)
    for path in (tmp_path / "cache" / "images").rglob("?" * 64):
        path.unlink()
    faults.seen.clear()
    assert_equal(batches(there, 4, workers=workers, cache_bytes=0), expected)
    loader = val_loader(there, min_size=64, max_size=64, workers=workers, with_labels=False)
    assert [x["image_id"] for batch in loader for x in batch] == [100, 101, 102]
    # Of train, those with objects. Two processes may want one at once.
    asked = _images_asked_for(faults)
    assert len(set(asked)) == 5
    assert len(asked) == 5 or workers
    faults.seen.clear()
    assert_equal(batches(there, 4, workers=workers, cache_bytes=0), expected)
    assert _images_asked_for(faults) == []


def test_a_process_that_did_not_list_the_data_reads_it_too(prefix: str, tmp_path: Path) -> None:
    _upload(write_coco(tmp_path / "data"), prefix)
    assert read_image(f"{prefix}/annotations/../train2017//000000000002.jpg").shape == (48, 48, 3)


@pytest.mark.parametrize("kind", ["503", "drop"])
def test_a_store_that_fails_for_a_moment_is_asked_again(kind: str, faults: Faults, prefix: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data")
    _upload(root, prefix)
    expected = _find(f"coco-json:{root}").fingerprint
    for only in ("/data/mine/annotations", "GET /bucket", ".jpg"):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        validate._layouts.clear()
        faults.inject(kind, 3, only=only)
        assert _find(f"coco-json:{prefix}").fingerprint == expected
        assert faults.left == 0


def test_a_store_that_stays_away_is_one_line_and_drops_no_image(
    faults: Faults, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    _upload(_noisy(tmp_path / "data"), prefix)
    faults.inject("503", 10**6, only=".jpg")
    with pytest.raises(StorageError, match=rf"^{prefix}/(train|val)2017/\d+\.jpg: no answer for 0 s \(.*\)$"):
        _find(f"coco-json:{prefix}")
    faults.inject("503", 10**6)
    with pytest.raises(StorageError, match=rf"^{prefix}: no answer"):
        _find(f"coco-json:{prefix}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_during_training_is_one_line(
    workers: int, faults: Faults, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    _upload(write_coco(tmp_path / "data"), prefix)
    there = resolve(f"coco-json:{prefix}", shapes=SMALL_SHAPES)
    image = f"{prefix}/train2017/000000000001.jpg"
    Store(image).write("", b"of another size")
    with pytest.raises(StorageError, match=rf"^{image}: has 15 bytes, and had \d+ before: start again$"):
        batches(there, 4, workers=workers, cache_bytes=0)
    Store(image).remove("")
    with pytest.raises(InputError, match=rf"^{image}: is missing$") as missing:
        batches(there, 4, workers=workers, cache_bytes=0)
    assert not isinstance(missing.value, StorageError)
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.2")
    faults.inject("503", 10**6, only=".jpg")
    with pytest.raises(StorageError, match=rf"^{prefix}/train2017/\d+\.jpg: no answer for 0 s \(.*\)$"):
        batches(there, 4, workers=workers, cache_bytes=0)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("coco-json:{there}/nothing", "data directory {there}/nothing does not exist"),
        ("coco-json:{there}/annotations", "no annotations in {there}/annotations: there is neither"),
        ("coco-json:{there}#2014", "{there}/annotations has no instances_train2014.json, only instances_train2017"),
        ("coco-json:s3://no-such-bucket/x", "data directory s3://no-such-bucket/x does not exist"),
        ("coco-json:s3://", "s3://: a bucket and a name in it"),
        ("coco-json:s3://key:secret@bucket/x", "s3://...: without options and credentials"),
        ("coco-json:gs://bucket/x", "gs://: needs gcsfs: pip install -e '.[storage]'"),
        ("coco-files:{there}/annotations/instances_train2017.json,{there}/no.json,{there}", "/no.json do not exist"),
        ("voc:{there}", "data voc:{there}: of object storage coco-json: and coco-files: are read alone"),
        ("yolo:{there}", "data yolo:{there}: of object storage"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_names_the_url(
    source: str, complaint: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Installed or not.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    _upload(write_coco(tmp_path / "data"), prefix)
    with pytest.raises(InputError) as error:
        _find(source.format(there=prefix))
    assert complaint.format(there=prefix) in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_missing_credentials_are_one_line(faults: Faults, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lgd.storage import store as storage

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    storage._filesystems.clear()
    try:
        with pytest.raises(StorageError, match=rf"^{prefix}: Unable to locate credentials$"):
            _find(f"coco-json:{prefix}")
    finally:
        storage._filesystems.clear()


def test_a_name_that_leads_elsewhere_is_no_image(prefix: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data")
    absolute = str(root / "train2017" / "000000000001.jpg")

    def rename(found: dict[str, Any]) -> None:
        found["images"][0]["file_name"] = absolute

    edit_json(root / "annotations" / "instances_train2017.json", rename)
    _upload(root, prefix)
    assert _find(f"coco-json:{root}").layout.dropped == ("", "")
    assert _find(f"coco-json:{prefix}").layout.dropped == ("1 missing image, 2 of dropped image", "")


def test_a_long_look_at_the_images_is_told(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image_sizes, "TOLD_FROM", 2)
    _upload(write_coco(tmp_path / "data"), prefix)
    _find(f"coco-json:{prefix}")
    assert f"reading the heads of 3 images in {prefix}/train2017 ..." in caplog.messages


def test_the_images_that_are_kept_are_bounded(
    faults: Faults, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, str(2 * file_cache.BLOCK / 1e9))
    _upload(write_coco(tmp_path / "data"), prefix)
    there = resolve(f"coco-json:{prefix}", shapes=SMALL_SHAPES)
    list(val_loader(there, min_size=64, max_size=64, workers=0, with_labels=False, cache_bytes=0))
    assert len(list((tmp_path / "cache" / "images").rglob("?" * 64))) <= 2
    # What is not kept is read again.
    assert ObjectPath(f"{prefix}/val2017/000000000100.jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.slow
def test_what_a_slow_store_takes_is_time_that_steps_wait_for_data(
    faults: Faults, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _upload(write_coco(tmp_path / "data"), prefix)
    read = Store.read

    def slow(store: Store, name: str) -> bytes | None:
        faults.inject("slow", 1, only=".jpg")
        return read(store, name)

    monkeypatch.setenv(SIZE_VARIABLE, "0")
    monkeypatch.setattr(Store, "read", slow)
    faults.seconds = 0.1
    experiment = quick_experiment(method__name="baseline", data__source=f"coco-json:{prefix}")
    record = training.run(experiment, tmp_path / "out")
    # Two images have objects; decoded they are kept, so each is read once.
    assert 2 * 0.1 <= record.within_training["data_wait"] < record.seconds["training"]
    assert record.data["fingerprint"] == _find(f"coco-json:{tmp_path / 'data'}").fingerprint
    assert json.loads((tmp_path / "out" / "record.json").read_text())["data"]["source"] == f"coco-json:{prefix}"
