"""deploy/kuberay.yaml is what KubeRay's CRD and its operator accept, and runs a command that lgd has."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablations.submit import checked_command

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "kuberay.yaml"
SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())


@pytest.fixture
def job() -> Any:
    return yaml.safe_load(FILE.read_text())


def problems(job: Any) -> list[str]:
    # It comes with Ray.
    jsonschema: Any = importlib.import_module("jsonschema")
    return [f"{x.json_path}: {x.message}" for x in jsonschema.Draft202012Validator(SCHEMA).iter_errors(job)]


def pods(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    return [x["template"]["spec"] for x in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_schema_accepts_it(job: Any) -> None:
    assert problems(job) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x["spec"].update(shutdownAfterJobFinished=True), "shutdownAfterJobFinished"),
        (lambda x: x["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-gpus": 0}), "0 is not"),
        (lambda x: x["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda x: x["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("minReplicas"), "minReplicas"),
        (lambda x: pods(x)[1]["containers"][0]["resources"]["limits"].update(memory="256GiB"), "256GiB"),
        (lambda x: x["metadata"].update(name="LGD_run"), "LGD_run"),
    ],
)
def test_the_schema_refuses_what_kubernetes_would(job: Any, change: Callable[[Any], object], said: str) -> None:
    changed = copy.deepcopy(job)
    change(changed)
    assert any(said in x for x in problems(changed))


def test_what_the_operator_checks_beyond_the_schema(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    # authOptions needs 2.52.
    assert tuple(map(int, pinned[1].split(".")[:2])) >= (2, 52)
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in pods(job):
        mounted = {x["name"] for container in pod["containers"] for x in container["volumeMounts"]}
        assert mounted == {x["name"] for x in pod["volumes"]}
        for container in pod["containers"]:
            # A GPU's request and limit must be the same; for the rest it makes Kubernetes evict the pod last.
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_its_command_is_one_of_lgd_and_leaves_its_results_on_the_volume(job: Any) -> None:
    program, *command = shlex.split(job["spec"]["entrypoint"])
    assert program == "lgd"
    # With an address and an absolute output there is nothing to add or to refuse.
    assert checked_command(command, ROOT) == command
    mounts = {x["mountPath"] for pod in pods(job) for x in pod["containers"][0]["volumeMounts"]}
    output = command[command.index("--output") + 1]
    assert any(output.startswith(f"{x}/") for x in mounts)


def test_few_lines_are_to_be_filled_in() -> None:
    marked = [x for x in FILE.read_text().splitlines() if "FILL IN" in x]
    assert 0 < len(marked) <= 8
