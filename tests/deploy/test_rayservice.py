"""The RayService of docs/several-machines.md against KubeRay's fields and this project's settings.

tests/cluster checks its Serve configuration against Ray's own schema.
"""

import re
import sysconfig
from pathlib import Path

import pytest
import yaml

from musicgen.cluster.options import Options
from musicgen.commands.server import ROOT

# Fields of KubeRay's resource definition (ray.io/v1, after version 1.7) that matter here.
SERVICE = {
    "excludeHeadPodFromServeSvc": bool,
    "rayClusterConfig": dict,
    "rayClusterDeletionDelaySeconds": int,
    "serveConfigV2": str,
    "serveService": dict,
    "suspend": bool,
    "upgradeStrategy": dict,
}
CLUSTER = {
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": dict,
    "rayVersion": str,
    "workerGroupSpecs": list,
}
HEAD = {"rayStartParams": dict, "serviceType": str, "template": dict}
WORKERS = {
    "groupName": str,
    "maxReplicas": int,
    "minReplicas": int,
    "rayStartParams": dict,
    "replicas": int,
    "template": dict,
}


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "several-machines.md").read_text()


@pytest.fixture(scope="module")
def spec(page):
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    return yaml.safe_load(text)["spec"]


@pytest.fixture(scope="module")
def arguments(spec):
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    return application["args"]


def test_every_field_is_kuberays(spec):
    cluster = spec["rayClusterConfig"]
    [workers] = cluster["workerGroupSpecs"]
    for part, fields in (
        (spec, SERVICE),
        (cluster, CLUSTER),
        (cluster["headGroupSpec"], HEAD),
        (workers, WORKERS),
    ):
        assert {name: type(value) for name, value in part.items()} == {
            name: fields[name] for name in part
        }
    assert all(isinstance(value, str) for value in workers["rayStartParams"].values())
    assert all(
        isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values()
    )


def test_workers_scale_as_far_as_the_application_asks(spec, arguments):
    cluster = spec["rayClusterConfig"]
    [workers] = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert workers["maxReplicas"] * gpus(workers) >= arguments["maximum"] * arguments["gpus"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert arguments["cpus"] <= int(resources(workers)["requests"]["cpu"])


def gpus(group):
    return int(resources(group)["limits"]["nvidia.com/gpu"])


def resources(group):
    [container] = group["template"]["spec"]["containers"]
    return container["resources"]


def test_every_pod_requests_cpu_and_memory_and_may_finish_its_requests(spec):
    cluster = spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(resources(group)["requests"]) == {"cpu", "memory"}
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= Options.drain
    assert spec["rayClusterDeletionDelaySeconds"] >= Options.drain


def test_the_ray_version_is_the_pinned_one(spec):
    pinned = (ROOT / "requirements-cluster.txt").read_text()
    assert f"ray[serve]=={spec['rayClusterConfig']['rayVersion']}\n" in pinned


def test_the_image_finds_ray_where_python_installs_scripts(page):
    [dockerfile] = re.findall(r"```dockerfile\n(.*?)```", page, re.DOTALL)
    assert 'sysconfig.get_path("scripts")' in dockerfile
    assert (Path(sysconfig.get_path("scripts")) / "ray").exists()
