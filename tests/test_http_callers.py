"""Many callers of one server: nobody is turned away, and nobody notices the others."""

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sounds
from cog_client import data_uri, samples

from musicgen.commands import server as cog
from musicgen.serving import result_files

SHORT = {"duration": 1, "output_format": "wav"}
UNFIT = {"continuation": True}  # without input_audio
MAXIMUM = 32


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    return data_uri(
        sounds.write(tmp_path_factory.mktemp("tune") / "a.wav", sounds.melody(2.0, 32000), 32000)
    )


def drawn_request(chance, tune):
    """Inputs of one of all the kinds there are."""
    mode = chance.choice(
        [
            {},
            {"prompt": "warm piano"},
            {"prompt": "techno, 140 bpm", "input_audio": tune},
            {"input_audio": tune, "continuation": True, "continuation_end": 1},
        ]
    )
    return {
        **mode,
        "duration": chance.choice([2, 2, 3, 5]),
        "seed": chance.randrange(3),
        "temperature": chance.choice([0, 1, 1.2]),
        "top_k": chance.choice([0, 50, 250]),
        "top_p": chance.choice([0, 0.9]),
        "classifier_free_guidance": chance.choice([0, 1, 3]),
        "normalization_strategy": chance.choice(["loudness", "clip", "peak", "rms"]),
        "output_format": chance.choice(["wav", "mp3"]),
    }


def check_bytes(server, requests, callers, disturb):
    """Every answer is what the request gets alone, though others come, go and are given up."""
    distinct = {str(inputs): inputs for inputs in requests}
    alone = {name: server.predict(**inputs)["output"] for name, inputs in distinct.items()}

    def ask(job):
        index, inputs = job
        if index % 5 == 4:
            disturb(server, index, inputs)
        return server.predict(**inputs)["output"] == alone[str(inputs)]

    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(ask, enumerate(requests)))


def disturb(server, index, inputs):
    """A request that is cancelled, or whose client leaves."""
    long = {**inputs, "duration": 60}
    if index % 2:
        try:
            httpx.post(f"{server.url}/predictions", json={"input": long}, timeout=0.5)
        except httpx.ReadTimeout:
            return
        raise AssertionError("60 s took half a second")
    answers = []
    name = f"given-up-{index}"
    caller = threading.Thread(target=lambda: answers.append(server.post(name, **long).json()))
    caller.start()
    time.sleep(0.5)
    httpx.post(f"{server.url}/predictions/{name}/cancel").raise_for_status()
    caller.join()
    # Cog itself calls it failed where the cancel comes while it still prepares the inputs.
    [answer] = answers
    early = answer["status"] == "failed" and answer["error"] == "Input validation error: "
    assert answer["status"] == "canceled" or early, answer


@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_a_request_among_others_gets_the_bytes_that_it_gets_alone(request, predictor, tune):
    chance = random.Random(predictor)
    requests = [drawn_request(chance, tune) for _ in range(8)] * 2
    check_bytes(request.getfixturevalue(f"{predictor}_server"), requests, 8, disturb)


@pytest.mark.full
@pytest.mark.parametrize("callers", [1, 3, 16])
@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_two_hundred_requests_get_their_own_bytes(request, predictor, callers, tune):
    chance = random.Random(callers)
    requests = [drawn_request(chance, tune) for _ in range(200)]
    check_bytes(request.getfixturevalue(f"{predictor}_server"), requests, callers, disturb)


def in_a_row(server, count, inputs):
    """The responses of one client that sends one request after the other."""
    with httpx.Client(timeout=None) as client:
        for _ in range(count):
            yield client.post(f"{server.url}/predictions", json={"input": inputs})


def refused_of(server, count):
    return sum(answer.status_code != 200 for answer in in_a_row(server, count, SHORT))


def test_a_client_that_sends_one_request_after_the_other_is_never_refused(predict_server):
    assert refused_of(predict_server, 60) == 0


@pytest.mark.parametrize("each", [500, pytest.param(5000, marks=pytest.mark.full)])
def test_callers_that_come_together_all_get_a_slot(predict_server, each):
    """What is refused by the name of its field takes so little time that many come together."""

    def ask(_):
        return Counter(answer.json()["error"] for answer in in_a_row(predict_server, each, UNFIT))

    with ThreadPoolExecutor(8) as pool:
        errors = sum(pool.map(ask, range(8)), Counter())
    [message] = errors
    assert "input_audio" in message


@pytest.mark.full
def test_a_thousand_requests_in_a_row_are_answered(predict_server):
    assert refused_of(predict_server, 1000) == 0


def test_sixteen_callers_at_once_each_get_their_own_answer_logs_and_metrics(predict_server):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: predict_server.predict(seed=seed, **SHORT), range(16)))
    for seed, answer in enumerate(answers):
        assert answer["output"]["seed"] == seed
        assert answer["logs"].count("seed: ") == answer["logs"].count(f"seed: {seed}\n") == 1
        assert "100%" in answer["logs"]  # more than once where steps take seconds
        assert answer["metrics"]["seconds"]["waiting"] >= 0
        assert samples(answer["output"]["audio"])[0].shape == (2, 32000)
    assert len({answer["output"]["audio"] for answer in answers}) == 16


def test_only_what_is_above_the_maximum_is_refused(predict_server):
    with ThreadPoolExecutor(100) as pool:
        inputs = {**SHORT, "duration": 8, "temperature": 0}
        answers = list(pool.map(lambda _: predict_server.post(**inputs), range(100)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 409}
    assert codes.count(200) >= MAXIMUM
    served = {answer.json()["output"]["audio"] for answer in answers if answer.status_code == 200}
    assert len(served) == 1


def test_a_short_request_does_not_wait_for_a_long_one(predict_server):
    answers = []
    long = threading.Thread(target=lambda: answers.append(predict_server.predict(duration=60)))
    long.start()
    time.sleep(1.0)
    predict_server.predict(**SHORT)
    assert not answers
    long.join()
    assert answers[0]["output"]["duration"] == 60.0


def test_cancelling_ends_one_prediction_and_its_files_alone(predict_server):
    before = predict_server.results()
    answers = {}

    def ask(name, **inputs):
        answers[name] = predict_server.post(name, **inputs).json()

    callers = [
        threading.Thread(target=ask, args=("cancelled",), kwargs={"duration": 300}),
        threading.Thread(target=ask, args=("neighbour",), kwargs={"duration": 20, "seed": 3}),
    ]
    for caller in callers:
        caller.start()
    time.sleep(1.0)  # into the decode loop
    url = f"{predict_server.url}/predictions/cancelled/cancel"
    assert httpx.post(url).status_code == 200
    for caller in callers:
        caller.join()
    assert answers["cancelled"]["status"] == "canceled"
    assert answers["neighbour"]["status"] == "succeeded", answers["neighbour"]
    [kept] = predict_server.results() - before
    assert [path.name for path in kept.iterdir()] == ["clip-0.mp3"]
    assert answers["neighbour"]["output"] == predict_server.predict(duration=20, seed=3)["output"]


def test_a_failed_prediction_leaves_no_file(predict_server):
    before = predict_server.results()
    predict_server.error(continuation=True)
    predict_server.error(input_audio="data:audio/wav;base64,UklGRg==")
    assert predict_server.results() <= before


def test_the_maximum_is_the_operators(start_server):
    server = start_server("predict", COG_MAX_CONCURRENCY="2")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: server.post(duration=30), range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 409]


def test_a_server_that_gets_sigterm_finishes_what_runs(checkpoints, tmp_path):
    port = cog.free_port()
    command, environment, folder = cog.prepare("predict", "127.0.0.1", port)
    environment |= {"MUSICGEN_WEIGHTS": str(checkpoints["text"]), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        cog.wait_until_ready(url, process)
        with ThreadPoolExecutor(4) as pool:
            inputs = {"input": {"duration": 20}}
            asked = [
                pool.submit(httpx.post, f"{url}/predictions", json=inputs, timeout=None)
                for _ in range(4)
            ]
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            assert [answer.result().json()["status"] for answer in asked] == ["succeeded"] * 4
        assert process.wait() == 0


@pytest.mark.full
def test_nothing_grows_over_two_thousand_requests(start_server, tune):
    """Memory, threads, descriptors and files after the first hundreds are what they are after all.

    What Cog leaves in folders of its own for each prediction is Cog's.
    """
    server = start_server("predict")
    worker = server.worker()
    chance = random.Random(0)

    def work(count):
        requests = [{**drawn_request(chance, tune), "duration": 2} for _ in range(count)]

        def ask(job):
            if job[0] % 20 == 19:
                disturb(server, job[0], job[1])
            return server.predict(**job[1])["status"]

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, enumerate(requests))) == {"succeeded"}
        return {
            "memory": worker.memory_info().rss,
            "threads": worker.num_threads(),
            "descriptors": worker.num_fds(),
        }

    before, after = work(300), work(1700)
    print(before, after)
    assert after["memory"] < 1.1 * before["memory"]
    assert after["threads"] <= before["threads"] + 2
    assert after["descriptors"] <= before["descriptors"] + 2
    kept = server.results()
    time.sleep(result_files.KEEP_SECONDS + 1)
    server.predict(**SHORT)
    assert len(server.results()) == 1 < len(kept)
