"""Every request that the schema accepts is served, or refused with the name of a field."""

import math
import re

import numpy as np
import plain_http
import pytest
import sounds
from cog_client import data_uri, samples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import hostile

SECRETS = {"song_id", "key"}  # for the bucket: see test_http_delivery.py
UNBOUNDED = 2**70
AUDIO = [
    "",
    "/etc/passwd",
    "file:///etc/passwd",
    "data:audio/wav;base64,UklGRg==",
    "data:,",
    "data:audio/wav",
    "data:audio/wav;base64,abc",
    "http://[",
    "http://127.0.0.1:9/a.wav",
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Values of input_audio: files that are usual or not, and values that are no files.

    The usual one has 1.5 s: shorter than some of the drawn durations, longer than others.
    """
    folder = tmp_path_factory.mktemp("tune")
    tune = data_uri(sounds.write(folder / "a.wav", sounds.melody(1.5, 32000), 32000))
    return [*[tune] * 9, *map(data_uri, hostile.unusual(folder).values()), *AUDIO]


def numbers(schema):
    """Integers and floats within the bounds, including the bounds and extreme values.

    JSON Schema counts 42.0 as an integer.
    """
    low = schema.get("minimum", -UNBOUNDED)
    if schema["type"] == "integer":
        high = schema.get("maximum", UNBOUNDED)
        few = st.integers(low, min(high, low + 300))
        return st.one_of(st.integers(low, high), few, few.map(float))
    high = schema.get("maximum", 1.7976931348623157e308)
    return st.one_of(
        st.floats(low, high, allow_nan=False, allow_infinity=False),
        st.floats(low, min(high, 3), allow_nan=False),
        st.sampled_from([low, math.nextafter(low, math.inf), high]),
    )


def values(name, schema, enums, audio):
    """Values that the schema accepts for one field."""
    if name == "duration":
        return st.sampled_from([1, 1, 1, 2, 3, 1.0, 2.0])
    if "allOf" in schema:
        return st.sampled_from(enums[name]["enum"])
    if schema.get("format") == "uri":
        return st.sampled_from(audio)
    kinds = {"boolean": st.booleans(), "string": st.text(max_size=200)}
    return kinds[schema["type"]] if schema["type"] in kinds else numbers(schema)


def requests(document, audio):
    schemas = document["components"]["schemas"]
    fields = {
        name: values(name, schema, schemas, audio)
        for name, schema in schemas["Input"]["properties"].items()
        if name not in SECRETS
    }
    duration = fields.pop("duration")
    return st.fixed_dictionaries({"duration": duration}, optional=fields)


def check(server, audio, examples):
    document = plain_http.get(f"{server.url}/openapi.json").json()
    names = set(document["components"]["schemas"]["Input"]["properties"])

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs=requests(document, audio))
    def served_or_refused_by_name(inputs):
        response = server.post(**inputs)
        answer = response.json()
        if response.status_code == 422:  # an integer that a JSON reader turns into another type
            assert answer["detail"][0]["loc"][-1] in names, answer
            return
        assert response.status_code == 200, answer
        if answer["status"] != "succeeded":
            refused = re.search(r"(?:InputError|validation error): (\w+)=", answer["error"])
            assert refused, (inputs, answer)
            assert refused[1] in names

    served_or_refused_by_name()
    assert server.predict(duration=1)


@pytest.mark.parametrize(("predictor", "examples"), [("predict", 40), ("songstarter", 20)])
def test_every_request_is_served_or_refused_by_name(request, predictor, examples, audio):
    check(request.getfixturevalue(f"{predictor}_server"), audio, examples)


@pytest.mark.full
def test_thousands_of_requests_are_served_or_refused_by_name(start_server, audio):
    """Slow addresses among them."""
    server = start_server("predict", INPUT_MAX_SECONDS="0.5")
    with hostile.endless() as url:
        check(server, [*audio, f"{url}/radio.mp3", f"{url}/bomb.mp3"], 3000)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"temperature": 1e308}, "temperature=1e+308: out of range. Send 0 to 1,000,000,000"),
        ({"classifier_free_guidance": 10**12}, "classifier_free_guidance=1000000000000: out of"),
    ],
)
def test_numbers_too_large_to_compute_with_are_refused(predict_server, inputs, message):
    assert message in predict_server.error(duration=1, **inputs)


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-9, 1e9])
def test_extreme_temperatures_are_served(predict_server, temperature):
    output = predict_server.predict(duration=1, seed=1, temperature=temperature)["output"]
    if temperature < 1e-9:
        greedy = predict_server.predict(duration=1, seed=1, temperature=0)["output"]
        heard, expected = (samples(one["audio"])[0] for one in (output, greedy))
        assert np.array_equal(heard, expected)  # the files' tags differ
