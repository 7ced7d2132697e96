"""Many callers of one server: all get a slot, and none affects the others."""

import json
import random
import signal
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import plain_http
import pytest
import sounds
from cog_client import data_uri, samples
from gate import until
from web import web_server

from musicgen.serving import result_files

SHORT = {"duration": 1, "output_format": "wav"}
INVALID = {"continuation": True}  # without input_audio
MAXIMUM = 32


@pytest.fixture(scope="module")
def tune_uri(tmp_path_factory):
    """1.5 s, since separating a melody takes longer than a short clip."""
    path = tmp_path_factory.mktemp("tune") / "tune.wav"
    return data_uri(sounds.write(path, sounds.melody(1.5, 32000), 32000))


@pytest.fixture
def held_input(tune):
    """A web server; requests whose input is `held_input.url`/held/tune.wav wait at its gate."""
    with web_server({"tune.wav": tune.read_bytes()}) as web:
        yield web


def new_id():
    """An id that no other prediction has, in this test run or another."""
    return f"test-{uuid.uuid4().hex}"


def drawn_request(chance, tune_uri):
    """Random inputs in one of the four modes of a request."""
    mode = chance.choice(
        [
            {},
            {"prompt": "warm piano"},
            {"prompt": "techno, 140 bpm", "input_audio": tune_uri},
            {"input_audio": tune_uri, "continuation": True, "continuation_end": 1},
        ]
    )
    return {
        **mode,
        "duration": chance.choice([2, 2, 3]),
        "seed": chance.randrange(3),
        "temperature": chance.choice([0, 1, 1.2]),
        "top_k": chance.choice([0, 50, 250]),
        "top_p": chance.choice([0, 0.9]),
        "classifier_free_guidance": chance.choice([0, 1, 3]),
        "normalization_strategy": chance.choice(["loudness", "clip", "peak", "rms"]),
        "output_format": chance.choice(["wav", "mp3"]),
    }


def check_bytes(server, requests, callers, disturb):
    """Every answer equals the one of an idle server, while other requests join and leave."""
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
    """A long request that is cancelled, or whose client disconnects, once it has begun."""
    name = new_id()
    with closing(server.begin(name, **{**inputs, "duration": 60})) as connection:
        until(lambda: server.says(name, "seed: "))
        if index % 2:
            return
        plain_http.post(f"{server.url}/predictions/{name}/cancel").raise_for_status()
        answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "canceled", answer


@pytest.mark.parametrize(("predictor", "distinct"), [("predict", 6), ("songstarter", 3)])
def test_a_request_among_others_gets_the_same_bytes_as_alone(
    request, predictor, distinct, tune_uri
):
    chance = random.Random(predictor)
    requests = [drawn_request(chance, tune_uri) for _ in range(distinct)] * 2
    check_bytes(request.getfixturevalue(f"{predictor}_server"), requests, 8, disturb)


@pytest.mark.full
@pytest.mark.parametrize("callers", [1, 3, 16])
@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_two_hundred_requests_get_their_own_bytes(request, predictor, callers, tune_uri):
    chance = random.Random(callers)
    requests = [drawn_request(chance, tune_uri) for _ in range(200)]
    check_bytes(request.getfixturevalue(f"{predictor}_server"), requests, callers, disturb)


def post(client, server, inputs):
    return client.post(f"{server.url}/predictions", json={"input": inputs})


def in_sequence(server, count, inputs):
    """The responses of one client that sends one request after the other."""
    with httpx.Client(timeout=None) as client:
        for _ in range(count):
            yield post(client, server, inputs)


def count_refused(server, count):
    return sum(answer.status_code != 200 for answer in in_sequence(server, count, SHORT))


def test_a_client_that_sends_one_request_after_the_other_is_never_refused(predict_server):
    assert count_refused(predict_server, 15) == 0


@pytest.mark.parametrize("each", [250, pytest.param(5000, marks=pytest.mark.full)])
def test_callers_that_arrive_together_all_get_a_slot(predict_server, each):
    """Invalid requests take so little time that many arrive at the same moment."""

    def ask(_):
        answers = in_sequence(predict_server, each, INVALID)
        return Counter(answer.json()["error"] for answer in answers)

    with ThreadPoolExecutor(8) as pool:
        errors = sum(pool.map(ask, range(8)), Counter())
    [message] = errors
    assert "input_audio" in message


@pytest.mark.full
def test_a_thousand_requests_in_sequence_are_answered(predict_server):
    assert count_refused(predict_server, 1000) == 0


def test_sixteen_callers_at_once_each_get_their_own_answer_logs_and_metrics(predict_server):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: predict_server.predict(seed=seed, **SHORT), range(16)))
    for seed, answer in enumerate(answers):
        assert answer["output"]["seed"] == seed
        assert answer["logs"].count("seed: ") == answer["logs"].count(f"seed: {seed}\n") == 1
        assert "100%" in answer["logs"]  # more than once on a machine whose steps take seconds
        assert answer["metrics"]["seconds"]["waiting"] >= 0
        assert samples(answer["output"]["audio"])[0].shape == (2, 32000)
    assert len({answer["output"]["audio"] for answer in answers}) == 16


def check_maximum(server, held_input, maximum, above):
    """`maximum` requests are held while they run; `above` more are refused; the held succeed."""
    inputs = {**SHORT, "temperature": 0, "input_audio": f"{held_input.url}/held/tune.wav"}
    # Continuing a second takes less time than following a melody.
    inputs |= {"continuation": True, "continuation_end": 1, "duration": 2}
    with ThreadPoolExecutor(maximum) as pool:
        held = [pool.submit(server.post, **inputs) for _ in range(maximum)]
        for _ in held:
            held_input.gate.arrived()
        with ThreadPoolExecutor(above) as others:
            refused = list(others.map(lambda _: server.post(**SHORT).status_code, range(above)))
        held_input.gate.open()
        answers = [answer.result().json() for answer in held]
    assert set(refused) == {409}
    assert {answer["status"] for answer in answers} == {"succeeded"}
    # The files' tags differ, because each request has its own seed.
    assert len({samples(answer["output"]["audio"])[0].tobytes() for answer in answers}) == 1
    assert server.predict(**SHORT)


def test_exactly_those_above_the_maximum_are_refused(predict_server, held_input):
    check_maximum(predict_server, held_input, MAXIMUM, above=68)


@pytest.fixture(scope="module")
def server_for_two(start_server):
    return start_server("predict", COG_MAX_CONCURRENCY="2")


def test_the_operator_sets_the_maximum(server_for_two, held_input):
    check_maximum(server_for_two, held_input, 2, above=1)


@pytest.mark.parametrize("each", [10, pytest.param(500, marks=pytest.mark.full)])
def test_as_many_callers_as_the_maximum_are_all_served_if_they_retry_on_409(server_for_two, each):
    """Cog frees a place after it has sent the answer, so a caller can meet its own former place."""
    inputs = {**SHORT, "seed": 1}
    alone, refused = server_for_two.predict(**inputs)["output"], Counter()

    def ask(caller):
        with httpx.Client(timeout=None) as client:
            for _ in range(each):
                while (answer := post(client, server_for_two, inputs)).status_code == 409:
                    refused[caller] += 1
                assert answer.json()["output"] == alone

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(2)))
    print("refused:", sum(refused.values()), "of", 2 * each)


def test_a_short_request_does_not_wait_for_a_long_one(predict_server):
    name = new_id()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(predict_server.post, name, duration=30)
        until(lambda: predict_server.says(name, "decode: "))
        predict_server.predict(**SHORT)
        assert not long.done()
    assert long.result().json()["output"]["duration"] == 30.0


def test_cancelling_ends_one_prediction_and_its_files_alone(predict_server):
    before = predict_server.results()
    cancelled, neighbour, inputs = new_id(), new_id(), {"duration": 10, "seed": 3}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict_server.post, cancelled, duration=300)
        second = pool.submit(predict_server.post, neighbour, **inputs)
        for name in (cancelled, neighbour):
            until(lambda name=name: predict_server.says(name, "decode: "))
        url = f"{predict_server.url}/predictions/{cancelled}/cancel"
        assert plain_http.post(url).status_code == 200
    assert first.result().json()["status"] == "canceled"
    answer = second.result().json()
    assert answer["status"] == "succeeded", answer
    [kept] = predict_server.results() - before
    assert [path.name for path in kept.iterdir()] == ["clip.mp3"]
    assert answer["output"] == predict_server.predict(**inputs)["output"]


def test_a_failed_prediction_leaves_no_file(predict_server):
    before = predict_server.results()
    predict_server.error(continuation=True)
    predict_server.error(input_audio="data:audio/wav;base64,UklGRg==")
    assert predict_server.results() <= before


def test_a_server_that_gets_sigterm_finishes_running_predictions(server_for_two):
    """The last test of this server, which ends."""
    server, names = server_for_two, [new_id() for _ in range(2)]
    process = server.worker().parent()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.post, name, duration=10) for name in names]
        for name in names:
            until(lambda name=name: server.says(name, "decode: "))
        process.send_signal(signal.SIGTERM)
        assert not any(answer.done() for answer in asked)
        assert [answer.result().json()["status"] for answer in asked] == ["succeeded"] * 2
    assert process.wait() == 0


@pytest.mark.full
def test_nothing_grows_over_two_thousand_requests(start_server, tune_uri):
    """Memory, threads, descriptors and files are the same after 300 requests and after 2,000.

    Cog's own empty folders for each prediction are not counted.
    """
    server = start_server("predict")
    worker = server.worker()
    chance = random.Random(0)

    def work(count):
        requests = [{**drawn_request(chance, tune_uri), "duration": 2} for _ in range(count)]

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
    time.sleep(result_files.KEEP_SECONDS + 1)  # the server removes results of this age
    server.predict(**SHORT)
    assert len(server.results()) == 1 < len(kept)
