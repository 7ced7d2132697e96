"""The Kubernetes probes of docs/internet.md, run against real servers in each state."""

import os
import re
import signal
import subprocess

import httpx
import plain_http
import psutil
import pytest
import yaml
from cog_server import server_without_checkpoint
from gate import until
from haproxy import listens

from musicgen.commands.server import ROOT


@pytest.fixture(scope="module")
def probes():
    page = (ROOT / "docs" / "internet.md").read_text()
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    return yaml.safe_load(text)


def succeeds(probe, url):
    """Whether a probe's command succeeds against a server that is not at port 5000."""
    command = [part.replace("http://127.0.0.1:5000", url) for part in probe["exec"]["command"]]
    assert command != probe["exec"]["command"]
    return subprocess.run(command, capture_output=True).returncode == 0


def states(probes, url):
    return [succeeds(probes[f"{name}Probe"], url) for name in ("startup", "readiness", "liveness")]


def test_a_ready_server_passes_and_one_without_a_worker_is_restarted(probes, start_server):
    client = start_server("predict")
    assert states(probes, client.url) == [True, True, True]
    os.kill(client.worker().pid, signal.SIGKILL)
    health = f"{client.url}/health-check"
    until(lambda: plain_http.get(health).json()["status"] == "UNHEALTHY")
    assert states(probes, client.url) == [False, False, False]


def test_a_server_that_starts_gets_no_traffic_and_is_not_restarted(probes, tmp_path):
    """Its worker is stopped while it imports its libraries."""
    with server_without_checkpoint(tmp_path) as (url, process):
        parent = psutil.Process(process.pid)
        until(lambda: parent.children())
        [worker] = parent.children()
        worker.suspend()
        until(lambda: listens(httpx.URL(url).port))
        assert plain_http.health(url) == "STARTING"
        assert states(probes, url) == [False, False, True]
        worker.resume()
        until(lambda: plain_http.health(url) == "SETUP_FAILED")
        assert states(probes, url) == [False, False, False]


def test_probes_wait_long_enough_for_a_busy_machine(probes):
    for name in ("startup", "readiness", "liveness"):
        assert probes[f"{name}Probe"]["timeoutSeconds"] >= 10
    assert probes["livenessProbe"]["failureThreshold"] >= 6
    assert probes["terminationGracePeriodSeconds"] >= 300
