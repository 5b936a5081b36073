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
from lgd.storage.outputs import checked_url

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "kuberay.yaml"
SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())


OPTIONS = ("autoscaler", "role", "disk", "spot")
"""The file's, whose lines are commented out."""


def read(*options: str) -> Any:
    """The file, with the lines of these options. Those have no space after their "#"."""
    lines, option = FILE.read_text().splitlines(), ""
    for i, line in enumerate(lines):
        commented = re.fullmatch(r"( *)#(\S.*)", line)
        named = re.search(r"# OPTION (\w+)", line)
        option = named[1] if named else option if commented else ""
        assert not commented or option in OPTIONS, line
        if commented and option in options:
            lines[i] = commented[1] + commented[2]
    return yaml.safe_load("\n".join(lines))


@pytest.fixture
def job() -> Any:
    return read()


def problems(job: Any) -> list[str]:
    # It comes with Ray.
    jsonschema: Any = importlib.import_module("jsonschema")
    return [f"{x.json_path}: {x.message}" for x in jsonschema.Draft202012Validator(SCHEMA).iter_errors(job)]


def pods(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    return [x["template"]["spec"] for x in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("options", [(), *((x,) for x in OPTIONS), OPTIONS])
def test_the_schema_accepts_it(options: tuple[str, ...]) -> None:
    job = read(*options)
    assert problems(job) == []
    assert len({str(read(*options)), str(read())}) == (2 if options else 1)
    for pod in pods(job):
        mounted = {x["name"] for container in pod["containers"] for x in container["volumeMounts"]}
        assert mounted == {x["name"] for x in pod["volumes"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x["spec"].update(shutdownAfterJobFinished=True), "shutdownAfterJobFinished"),
        (lambda x: x["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-gpus": 0}), "0 is not"),
        (lambda x: x["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda x: x["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("minReplicas"), "minReplicas"),
        (lambda x: pods(x)[1]["containers"][0]["resources"]["limits"].update(memory="256GiB"), "256GiB"),
        (lambda x: x["metadata"].update(name="LGD_run"), "LGD_run"),
        (lambda x: x["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling="yes"), "'yes' is not"),
        (lambda x: pods(x)[1].update(terminationGracePeriodSeconds="60s"), "60s"),
        (lambda x: pods(x)[1].update(serviceAccount="lgd"), "serviceAccount"),
        (lambda x: pods(x)[1]["containers"][0]["env"].append({"name": "N", "value": 1}), "1 is not of type 'string'"),
        (lambda x: pods(x)[1]["containers"][0].update(envFrom=[{"secretRef": "lgd"}]), "'lgd' is not of type 'object'"),
        (lambda x: pods(x)[1].update(tolerations=[{"key": "a", "effect": "Never"}]), "'Never' is not one of"),
        (
            lambda x: pods(x)[1].update(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
            "'' was expected",
        ),
        (lambda x: pods(x)[1].update(tolerations=[{"operator": "Equal"}]), "'key' is a required"),
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
        for container in pod["containers"]:
            # A GPU's request and limit must be the same; for the rest it makes Kubernetes evict the pod last.
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("options", [(), OPTIONS])
def test_its_dashboard_is_reached_from_inside_the_cluster_alone(options: tuple[str, ...]) -> None:
    """KubeRay binds it to 0.0.0.0 in the head's pod, so that its own submitter reaches it."""
    cluster = read(*options)["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["authOptions"] == {"mode": "token"}


def test_its_command_is_one_of_lgd_and_leaves_its_results_in_a_bucket(job: Any) -> None:
    program, *command = shlex.split(job["spec"]["entrypoint"])
    assert program == "lgd"
    # With an address and a URL as output there is nothing to add or to refuse.
    assert checked_command(command, ROOT) == command
    assert checked_url(command[command.index("--output") + 1]) == "s3://BUCKET/main"
    assert command[command.index("--data") + 1].startswith("coco-json:s3://BUCKET/")
    for pod in pods(job):
        (container,) = pod["containers"]
        # Every process works on its node's disk, and may use the bucket.
        (cache,) = (x["value"] for x in container["env"] if x["name"] == "LGD_CACHE")
        (mount,) = (x["name"] for x in container["volumeMounts"] if x["mountPath"] == cache)
        assert {"name": mount, "emptyDir": {}} in pod["volumes"]
        # Not needed where the pods have an account.
        assert container["envFrom"] == [{"secretRef": {"name": "lgd-bucket", "optional": True}}]
    assert "kubectl create secret generic lgd-bucket " in FILE.read_text()
    assert {x["serviceAccountName"] for x in pods(read("role"))} == {"lgd"}


def test_with_a_shared_disk_its_results_lie_there() -> None:
    (line,) = (x for x in FILE.read_text().splitlines() if "# OPTION disk:" in x)
    added = line[line.index("--output") :].split()
    assert checked_command(["sweep", "run", "main", *added, "--address", "auto"], ROOT)
    for pod in pods(read("disk")):
        (mount,) = (x for x in pod["containers"][0]["volumeMounts"] if x["name"] == "shared")
        assert added[1].startswith(f"{mount['mountPath']}/")
        assert added[3].startswith(f"coco-json:{mount['mountPath']}/")
        assert any("persistentVolumeClaim" in x for x in pod["volumes"])


def test_workers_have_the_time_to_write_a_checkpoint(job: Any) -> None:
    # Ray leaves the node when this has passed since SIGTERM.
    constants: Any = importlib.import_module("ray._private.ray_constants")
    head, *workers = pods(read("spot"))
    for pod in workers:
        assert pod["terminationGracePeriodSeconds"] > constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S + 10
    # The command runs on the head, which is not to be taken away.
    assert not {"tolerations", "nodeSelector"} & head.keys()
    assert all({"tolerations", "nodeSelector"} <= x.keys() for x in workers)


def test_the_autoscaler_leaves_one_worker() -> None:
    cluster = read("autoscaler")["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert [x["minReplicas"] for x in cluster["workerGroupSpecs"]] == [1]


def test_few_lines_are_to_be_filled_in() -> None:
    marked = [x for x in FILE.read_text().splitlines() if "FILL IN" in x]
    assert 0 < len(marked) <= 8
