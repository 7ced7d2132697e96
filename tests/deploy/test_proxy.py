"""Every rule of docs/internet.md is a request to the real proxy in front of the real server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import haproxy
import httpx
import plain_http
import pytest
import yaml
from cog_server import server_without_checkpoint
from gate import until
from haproxy import ORIGIN, TOKEN

from musicgen.commands.server import ROOT

DEPLOY = ROOT / "deploy"
HEALTH = DEPLOY / "health.py"
JSON = {"Content-Type": "application/json"}
SHORT = {"prompt": "trap", "duration": 1, "seed": 7}

needs_haproxy = pytest.mark.skipif(not haproxy.is_installed(), reason="haproxy is not installed")


@pytest.fixture
def proxy(predict_server, tmp_path):
    with haproxy.running(predict_server.url, tmp_path) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def streaming_server(start_server):
    return start_server("streaming")


@needs_haproxy
def test_a_prediction_through_the_proxy_is_the_servers_own(predict_server, proxy):
    answer = proxy.predict(**SHORT)
    assert answer.json()["output"] == predict_server.predict(**SHORT)["output"]


@needs_haproxy
def test_events_pass_through_the_proxy_while_the_prediction_runs(streaming_server, tmp_path):
    server = streaming_server
    with haproxy.running(server.url, tmp_path) as proxy:
        headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"}
        body = {"input": {"duration": 300}}
        address = f"{proxy.url}/predictions"
        with httpx.stream(
            "POST", address, json=body, headers=headers, verify=proxy.trust(), timeout=None
        ) as answer:
            assert any('"pcm"' in line for line in answer.iter_lines())
            assert "Prediction worker completed" not in server.log.read_text()
        until(lambda: "cancelled" in server.log.read_text())


@needs_haproxy
@pytest.mark.parametrize("path", ["/predictions", "/health-check", "/shutdown", "/", "/x"])
def test_every_path_needs_the_token(proxy, path):
    method = "GET" if path == "/health-check" else "POST"
    for token in (None, "wrong", f"{TOKEN}x", TOKEN[:-1], TOKEN.upper()):
        assert proxy.request(method, path, token, json={}).status_code == 401, token


@needs_haproxy
def test_only_tls_is_answered(proxy):
    with pytest.raises(httpx.RemoteProtocolError):
        plain_http.get(f"http://localhost:{proxy.port}/health-check")


@needs_haproxy
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/shutdown"),
        ("PUT", "/predictions/abc"),
        ("GET", "/predictions"),
        ("GET", "/"),
        ("GET", "/openapi.json"),
        ("POST", "/health-check"),
        ("POST", "/predictions/../shutdown"),
        ("POST", "/predictions/%2e%2e/cancel"),
        ("POST", "//predictions"),
        ("POST", "/predictions/"),
        ("POST", f"/predictions/{'a' * 65}/cancel"),
        ("POST", "/trainings"),
    ],
)
def test_all_other_paths_are_refused(proxy, predict_server, method, path):
    answer = proxy.request(method, path, json={"input": SHORT})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert plain_http.health(predict_server.url) in ("READY", "BUSY")


@needs_haproxy
def test_the_health_check_is_let_through(proxy):
    assert proxy.request("GET", "/health-check").json()["status"] in ("READY", "BUSY")


@needs_haproxy
def test_no_body_token_or_key_reaches_the_log(proxy):
    secret = "open-sesame-0xC0FFEE"
    proxy.predict(**SHORT, key=secret)
    refused = proxy.predict(**SHORT, key=[secret])
    assert refused.status_code == 422
    assert secret in refused.text  # Cog quotes it to the sender
    malformed = proxy.request("POST", "/predictions", content=f'{{"key": "{secret}"', headers=JSON)
    assert malformed.status_code in (400, 422)
    until(lambda: proxy.log.read_text().count("POST /predictions") == 3)
    assert secret not in proxy.log.read_text()
    assert TOKEN not in proxy.log.read_text()


@needs_haproxy
@pytest.mark.parametrize("body", ['{"id": "../../x", %s}', '{"\\u0069d": "../../x", %s}'])
def test_a_client_cannot_choose_an_id(proxy, body):
    sent = body % '"input": {"duration": 1}'
    answer = proxy.request("POST", "/predictions", content=sent, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "id"]


@needs_haproxy
def test_the_id_in_the_answer_is_the_one_in_the_log(proxy):
    name = proxy.predict(**SHORT).json()["id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", name)
    until(lambda: f"prediction {name}" in proxy.log.read_text())


@needs_haproxy
def test_a_prediction_that_is_not_waited_for_can_be_cancelled(proxy, predict_server):
    headers = {"Prefer": "respond-async"}
    body = {"input": {**SHORT, "duration": 300}}
    answer = proxy.request("POST", "/predictions", json=body, headers=headers)
    assert answer.status_code == 202
    name = answer.json()["id"]
    assert proxy.request("POST", f"/predictions/{name}/cancel").status_code == 200
    until(lambda: predict_server.says(name, "cancelled"))
    assert proxy.request("POST", f"/predictions/{name}/cancel").status_code == 404


@needs_haproxy
def test_more_callers_than_places_wait_and_none_is_refused(proxy):
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: proxy.predict(**SHORT), range(40)))
    assert [answer.status_code for answer in answers] == [200] * 40
    assert len({answer.json()["output"]["audio"] for answer in answers}) == 1


@needs_haproxy
def test_a_client_that_disconnects_frees_its_place(proxy, predict_server):
    body = json.dumps({"input": {**SHORT, "duration": 300, "seed": 71_000}})
    head = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}", **JSON}
    lines = [f"{name}: {value}" for name, value in head.items()]
    request = "\r\n".join(
        ["POST /predictions HTTP/1.1", *lines, f"Content-Length: {len(body)}", "", body]
    )
    with (
        socket.create_connection(("localhost", proxy.port)) as connection,
        proxy.trust().wrap_socket(connection, server_hostname="localhost") as client,
    ):
        client.sendall(request.encode())
        # Cog may lose a cancel before the prediction has begun.
        until(lambda: "seed: 71000" in predict_server.log.read_text())
    until(lambda: "POST /predictions" in proxy.log.read_text())
    [name] = re.findall(r"prediction (\S+),", proxy.log.read_text())
    until(lambda: predict_server.says(name, "cancelled"))


@needs_haproxy
def test_bodies_above_the_limit_are_refused_unread(proxy):
    answer = proxy.request("POST", "/predictions", content=b"0" * (33 << 20), headers=JSON)
    assert answer.status_code == 413
    chunked = proxy.request("POST", "/predictions", content=iter([b"{}"]), headers=JSON)
    assert chunked.status_code == 411


@needs_haproxy
def test_a_body_that_cog_would_ignore_is_refused(proxy):
    assert proxy.request("POST", "/predictions", content=b"{}").status_code == 415


@needs_haproxy
def test_too_many_requests_of_one_address_are_refused(proxy):
    with httpx.Client(verify=proxy.trust(), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        codes = [client.get(f"{proxy.url}/health-check").status_code for _ in range(130)]
    assert codes[:100] == [200] * 100
    assert codes[-1] == 429


@needs_haproxy
def test_pages_of_one_origin_can_read_every_answer(proxy):
    preflight = proxy.request("OPTIONS", "/predictions", token=None)
    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answers = [
        preflight,
        proxy.predict(**SHORT),
        proxy.predict(duration=0),
        proxy.request("GET", "/health-check"),
        proxy.request("POST", "/predictions", token=None),
        proxy.request("POST", "/shutdown"),
    ]
    assert [answer.status_code for answer in answers] == [204, 200, 422, 200, 401, 404]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {ORIGIN}


@needs_haproxy
def test_a_crashed_worker_takes_the_server_out_and_the_health_check_ends_it(
    streaming_server, tmp_path
):
    """The last test of this server."""
    client = streaming_server
    assert health(client.url, os.getpid()) == (
        "READY",
        0,
    )  # a healthy server's process is left alone
    with haproxy.running(client.url, tmp_path) as proxy:
        worker = client.worker()
        [parent] = [worker.parent()]
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: proxy.predict(**SHORT).status_code == 503)  # by the text: HTTP says 200
    assert health(client.url, parent.pid) == ("UNHEALTHY", 1)
    until(lambda: not parent.is_running() or parent.status() == "zombie")


def test_a_server_whose_setup_failed_is_ended(tmp_path):
    with server_without_checkpoint(tmp_path) as (url, process):
        until(lambda: haproxy.listens(httpx.URL(url).port))
        until(lambda: plain_http.health(url) != "STARTING")
        assert health(url, process.pid) == ("SETUP_FAILED", 1)
        assert process.wait() == 0


def health(url, pid):
    """What deploy/health.py prints, and its exit code."""
    command = [sys.executable, str(HEALTH), "--url", url, "--pid", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip(), done.returncode


@needs_haproxy
def test_the_proxy_does_not_start_without_a_token():
    command = [haproxy.INSTALLED, "-c", "-f", str(haproxy.CONFIG)]
    done = subprocess.run(command, env={}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Set MUSICGEN_TOKEN" in done.stderr


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_server_of_the_compose_file_is_reached_through_the_proxy_alone(compose):
    musicgen, proxy = compose["services"]["musicgen"], compose["services"]["proxy"]
    assert "ports" not in musicgen
    assert musicgen["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}  # no route to internal addresses
    assert set(proxy["networks"]) == set(compose["networks"])
    [published] = proxy["ports"]
    assert published.endswith(f":{proxy['environment']['PROXY_PORT']}")


def test_the_compose_file_bounds_tmp_restarts_and_sets_what_the_proxy_reads(compose):
    musicgen, proxy = compose["services"]["musicgen"], compose["services"]["proxy"]
    assert any(re.fullmatch(r"/tmp:size=\d+g", mount) for mount in musicgen["tmpfs"])
    assert musicgen["restart"] == "unless-stopped"
    assert musicgen["healthcheck"]["test"][-1] == "/src/deploy/health.py"
    assert HEALTH.exists()
    read = set(re.findall(r"\$\{(\w+)\}", haproxy.CONFIG.read_text()))
    assert set(proxy["environment"]) == read
    for volume in proxy["volumes"]:
        name = volume.split(":")[0]
        assert name == "./certs" or (DEPLOY / name).exists()  # the certificates are the operator's


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
@pytest.mark.parametrize(("token", "code"), [({"MUSICGEN_TOKEN": "x"}, 0), ({}, 1)])
def test_docker_compose_reads_the_file_and_asks_for_a_token(token, code):
    command = ["docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config"]
    environment = {"PATH": os.environ["PATH"], **token}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(code), done.stderr
    assert code == 0 or "MUSICGEN_TOKEN" in done.stderr


def test_every_answer_of_the_proxy_is_json():
    for text in re.findall(r"string '([^']*)'", haproxy.CONFIG.read_text()):
        assert set(json.loads(text)) == {"detail"}
