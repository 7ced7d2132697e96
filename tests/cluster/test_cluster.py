"""Several servers behave as one, and the failure of one of them is survived.

Each cluster ends by ctrl-C, which must leave no process: see `ray_cluster.started`.
"""

import base64
import itertools
import json
import queue
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import plain_http
import pytest
import upload_key
import yaml
from ray_cluster import started
from upload_key import PART, check_uploads, family, with_key
from web import listening

from musicgen.checkpoints.folders import DEFAULT
from musicgen.commands.client import CancelledError, Client, fetch
from musicgen.commands.events import Metric
from musicgen.commands.server import ROOT

pytestmark = pytest.mark.timeout(900)  # some tests wait until a process is replaced
# Runs in its own process, since Ray emits warnings when it is imported.
CHECK = """
import json, sys
from importlib import import_module
from ray.serve.schema import ServeDeploySchema
[application] = ServeDeploySchema.model_validate(json.loads(sys.argv[1])).applications
module, _, name = application.import_path.partition(":")
assert getattr(import_module(module), name)(application.args)
"""
SHORT = {"duration": 1, "output_format": "wav"}
LONG = {"duration": 120}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, storage_url):
    """Two replicas of the demo that take four predictions each; eight more may wait."""
    log = tmp_path_factory.mktemp("cluster") / "log"
    settings = {"COG_MAX_CONCURRENCY": "4", **upload_key.settings(storage_url)}
    with started(log, "--replicas", "2", "--queue", "8", **settings) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def single(start_server):
    """A single server of the demo."""
    return start_server("predict", DEFAULT)


@pytest.fixture
def webhook():
    """(address, queue of the JSON that was posted there)."""
    posted = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with listening(Handler) as url:
        yield url, posted


def audio(response):
    answer = response.json()
    assert answer.get("status") == "succeeded", answer
    return answer["output"]["audio"]


def servers_used(cluster):
    """The replicas whose servers have started a prediction, by the log."""
    lines = [line for line in cluster.log.read_text().splitlines() if "Starting prediction" in line]
    return {re.search(r"pid=(\d+)", line)[1] for line in lines}


def test_callers_get_the_bytes_of_a_single_server_from_both_replicas(cluster, single):
    requests = [{**SHORT, "seed": seed} for seed in range(12)]
    answers = cluster.together(6, requests)
    alone = [single.predict(**inputs)["output"]["audio"] for inputs in requests]
    assert [audio(answer) for answer in answers] == alone
    assert len(servers_used(cluster)) == 2


def test_other_paths_are_answered_as_by_a_single_server(cluster, single):
    for path in ("/", "/openapi.json", "/docs"):
        one, many = plain_http.get(single.url + path), plain_http.get(cluster.url + path)
        assert (one.status_code, one.content) == (many.status_code, many.content)
    assert plain_http.health(cluster.url) == "READY"
    bad = {"duration": 0}
    assert cluster.post(**bad).status_code == single.post(**bad).status_code == 422
    assert cluster.post(**bad).json() == single.post(**bad).json()


def test_an_unknown_input_is_refused_by_its_name(cluster):
    answer = cluster.post(promt="soul")
    assert answer.status_code == 422
    assert "Did you mean prompt?" in answer.text


def test_a_server_without_gpus_sees_none(cluster):
    """Ray 2.60 hides them only if RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is 1."""
    servers = cluster.processes("server")
    assert [process.environ()["CUDA_VISIBLE_DEVICES"] for process in servers] == ["", ""]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_has_the_upload_key_in_its_environment(cluster):
    processes = family(cluster.process.pid)
    # Ray's processes and the servers may have been started by another process since.
    processes |= {one.pid: " ".join(one.cmdline()) for one in cluster.processes()}
    for kind in ("raylet", "gcs_server", "ProxyActor", ":gate", ":replica", "_run_worker"):
        assert any(kind in name for name in processes.values()), (kind, processes)
    assert with_key(processes) == []
    check_uploads(cluster.url)
    [session] = set(re.findall(r"/tmp/ray/session_[\w-]+", str(processes)))
    for file in [cluster.log, *Path(session, "logs").rglob("*")]:
        assert not file.is_file() or PART.encode() not in file.read_bytes(), file


def test_a_server_cannot_be_shut_down_through_the_gate(cluster):
    assert plain_http.post(f"{cluster.url}/shutdown").status_code == 404


def test_a_prediction_with_an_id_is_found_and_can_be_cancelled(cluster):
    names = [f"mine-{index}" for index in range(4)]
    places = [f"{cluster.url}/predictions/{name}" for name in names]
    body = {"input": LONG}
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda place: plain_http.put(place, json=body), places)
        cluster.wait_for(lambda: seeds_drawn(cluster) >= set(names))
        for place in places:
            again = [seed(plain_http.put(place, json=body, headers=ASYNC)) for _ in range(3)]
            assert again[0]
            assert len(set(again)) == 1
            plain_http.post(f"{place}/cancel").raise_for_status()
        assert {answer.json()["status"] for answer in answers} == {"canceled"}
    assert plain_http.post(f"{places[0]}/cancel").status_code == 404


def seeds_drawn(cluster):
    """The ids of the predictions that have drawn a seed, by the log."""
    drawn = [line for line in cluster.log.read_text().splitlines() if '"seed: ' in line]
    return {re.search(r'"prediction_id":"([^"]*)"', line)[1] for line in drawn}


def seed(answer):
    """The seed of a running prediction, or None."""
    found = re.search(r"seed: (\d+)", answer.json().get("logs", ""))
    return found and found[1]


def test_an_asynchronous_result_is_posted_to_the_webhook(cluster, webhook):
    address, posted = webhook
    body = {"input": SHORT, "webhook": address, "webhook_events_filter": ["completed"]}
    answer = plain_http.post(f"{cluster.url}/predictions", json=body, headers=ASYNC)
    assert answer.status_code == 202
    result = posted.get()
    assert result["id"] == answer.json()["id"]
    assert result["status"] == "succeeded"


def test_an_asynchronous_prediction_holds_its_slot(cluster):
    """Eight run and eight wait: the next is refused, with a Retry-After."""
    body = {"input": LONG}
    running = [
        plain_http.post(f"{cluster.url}/predictions", json=body, headers=ASYNC).json()["id"]
        for _ in range(8)
    ]
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(cluster.post, **SHORT) for _ in range(12)]
        cluster.wait_for(lambda: sum(one.done() for one in waiting) == 4)
        refused = [one.result() for one in waiting if one.done()]
        assert {answer.status_code for answer in refused} == {503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
        for name in running:
            plain_http.post(f"{cluster.url}/predictions/{name}/cancel").raise_for_status()
        answers = [one.result() for one in waiting]
    assert sum(answer.status_code == 200 for answer in answers) == 8


def test_metrics_are_exported_for_prometheus(cluster):
    audio(cluster.post(**SHORT))
    wanted = {
        "waiting 0.0",
        "running 0.0",
        "requests_total succeeded",
        "audio_seconds_total",
        "waiting_seconds_count",
        "result_seconds_count",
    }
    cluster.wait_for(lambda: wanted <= exported(cluster))


def metrics(cluster):
    return plain_http.get(f"http://127.0.0.1:{cluster.metrics}/metrics").text


def gates(cluster):
    """Ray's ids of the gates that have exported metrics. It also exports those of ended gates."""
    return set(re.findall(r'^ray_musicgen_.*WorkerId="(\w+)"', metrics(cluster), re.MULTILINE))


def exported(cluster, ended=()):
    """The metrics' names, gauges also with their value, requests also with their outcome.

    Those of the gates in `ended` are left out.
    """
    lines = metrics(cluster).splitlines()
    text = "\n".join(line for line in lines if not any(gate in line for gate in ended))
    found = re.findall(r"^ray_musicgen_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    outcomes = re.findall(r'^ray_musicgen_(requests_total)\{.*outcome="(.*?)"', text, re.MULTILINE)
    return {
        *(name for name, _, _ in found),
        *(f"{name} {value}" for name, _, value in found),
        *(f"{name} {outcome}" for name, outcome in outcomes),
    }


def test_a_dead_worker_is_replaced_and_only_its_own_requests_fail(cluster, single):
    check_replaced(cluster, single, "worker", 18)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["worker", "server", "replica"])
def test_every_dead_process_is_replaced(cluster, single, kind):
    check_replaced(cluster, single, kind, 100)


def check_replaced(cluster, single, kind, count):
    """Kill one under load: at most six requests fail, with a message; then there are two again."""
    cluster.wait_for(lambda: len(cluster.processes("worker")) == 2)
    requests = [{**SHORT, "seed": number % 3} for number in range(count)]
    alone = [single.predict(**inputs)["output"]["audio"] for inputs in requests[:3]]
    while len(before := servers_used(cluster)) < 2:
        cluster.together(6, requests[:6])
    victim, answered = cluster.victim(kind), itertools.count(1)

    def ask(inputs):
        answer = cluster.post(**inputs)
        if next(answered) == 6:  # five others run, at most four of them on the other replica
            victim.kill()
        return answer

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, requests))
    good = [answer.status_code == 200 and "output" in answer.json() for answer in answers]
    for index, answer in enumerate(answers):
        if good[index]:
            assert audio(answer) == alone[index % 3]
        else:
            assert re.search("has ended|crashed|Broken pipe", answer.text), answer.text
    assert 1 <= good.count(False) <= 6
    cluster.wait_for(lambda: len(cluster.processes("worker")) == 2 and not victim.is_running())
    while not servers_used(cluster) > before:
        assert [audio(answer) for answer in cluster.together(6, requests[:6])] == alone * 2


@pytest.mark.full
def test_a_new_gate_finds_the_predictions_of_the_old_one_and_frees_their_slots(cluster):
    place, body = f"{cluster.url}/predictions/left", {"input": LONG}
    plain_http.put(place, json=body, headers=ASYNC).raise_for_status()
    cluster.wait_for(lambda: seed(plain_http.put(place, json=body, headers=ASYNC)))
    with ThreadPoolExecutor(7) as pool:
        lost = [pool.submit(cluster.post, **LONG) for _ in range(7)]
        cluster.wait_for(lambda: plain_http.health(cluster.url) == "BUSY")
        drawn = seed(plain_http.put(place, json=body, headers=ASYNC))
        cluster.gate().kill()
        assert {answer.result().status_code for answer in lost} == {500}
    cluster.wait_for(lambda: plain_http.health(cluster.url) == "READY")
    assert seed(plain_http.put(place, json=body, headers=ASYNC)) == drawn
    plain_http.post(f"{place}/cancel").raise_for_status()
    assert all(map(audio, cluster.together(8, [SHORT] * 16)))


def test_the_documented_configuration_is_valid_for_ray_serve():
    page = (ROOT / "docs" / "several-machines.md").read_text()
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
    subprocess.run([sys.executable, "-c", CHECK, json.dumps(config)], cwd=ROOT, check=True)


def test_a_port_in_use_is_reported(cluster):
    second = subprocess.run(
        [ROOT / "scripts" / "cluster", "--port", str(cluster.port)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert second.stderr.startswith(f"Error: Port {cluster.port} of 127.0.0.1 cannot be used")


def test_streams_pass_through_the_gate_while_they_run(cluster):
    """One replica with one slot, which each stream frees, also one that is ended early.

    It replaces those of `cluster`, whose other tests are above: a cluster takes longer to start.
    """
    ended = gates(cluster)
    cluster.update("--predictor", "streaming", "--replicas", "1", COG_MAX_CONCURRENCY="1")
    inputs = {**SHORT, "normalization_strategy": "clip"}
    client, before = Client(cluster.url), len(cluster.log.read_text())
    assert client.can_stream()
    events = client.stream({"duration": 300})
    assert first_piece(events)["start"] == 0
    assert "Prediction worker completed" not in cluster.log.read_text()[before:]
    events.close()
    *events, prediction = client.stream(inputs)
    found = [event.value for event in events if isinstance(event, Metric)][:2]
    pcm = b"".join(base64.b64decode(piece["pcm"]) for piece in found)
    assert len(pcm) == 32000 * 2 * 2
    assert fetch(prediction.audio[0])[0].count(pcm) == 1
    name = "mine"
    events = client.stream({"duration": 300}, name)
    first_piece(events)
    assert client.cancel(name)
    with pytest.raises(CancelledError):
        list(events)
    wanted = {"requests_total succeeded", "requests_total canceled", "audio_seconds_total"}
    cluster.wait_for(lambda: wanted <= exported(cluster, ended))


def first_piece(events):
    """The value of the first metric among events."""
    return next(event.value for event in events if isinstance(event, Metric))


@pytest.mark.full
def test_two_hundred_requests_of_sixteen_callers_get_the_bytes_of_a_single_server(single, tmp_path):
    requests = [{**SHORT, "seed": number % 20, "duration": 1 + number % 2} for number in range(200)]
    with started(tmp_path / "log", "--replicas", "2") as cluster:
        answers = cluster.together(16, requests)
        assert len(servers_used(cluster)) == 2
    alone = {str(inputs): single.predict(**inputs)["output"]["audio"] for inputs in requests[:20]}
    for inputs, answer in zip(requests, answers, strict=True):
        assert audio(answer) == alone[str(inputs)]


@pytest.mark.full
def test_replicas_scale_with_the_load_without_failed_requests(tmp_path):
    options = ("--min", "1", "--max", "3", "--idle", "5")
    request = {**SHORT, "duration": 4}
    with started(tmp_path / "log", *options, COG_MAX_CONCURRENCY="4") as cluster:
        for callers, replicas in ((1, 1), (8, 3), (1, 1)):
            while len(cluster.processes("worker")) != replicas:
                assert all(map(audio, cluster.together(callers, [request] * callers * 2)))
            assert all(map(audio, cluster.together(callers, [request] * callers * 2)))


@pytest.mark.full
def test_weights_are_replaced_without_a_failed_request(checkpoints, tmp_path):
    with started(tmp_path / "log", "--replicas", "2") as cluster, ThreadPoolExecutor(1) as pool:
        done = threading.Event()

        def ask():
            models = []
            while not done.is_set():
                models += [
                    answer.json()["output"]["model"] for answer in cluster.together(4, [SHORT] * 8)
                ]
            return models

        asked = pool.submit(ask)
        try:
            cluster.update("--replicas", "2", "--weights", checkpoints["text"])
        finally:
            done.set()
        models = asked.result()
        assert set(models) == {"demo", "text"}
        assert {
            answer.json()["output"]["model"] for answer in cluster.together(4, [SHORT] * 8)
        } == {"text"}
