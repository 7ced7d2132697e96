"""The predictors match the contract, and no Input has a form that Cog's parser misreads."""

import json
from pathlib import Path

import pytest

from musicgen.commands.schema import SchemaError, concurrency, openapi, write

ROOT = Path(__file__).parents[2]
PREDICTORS = ["predict", "songstarter", "streaming"]

SOURCE = """
class Predictor(BasePredictor):
    def predict(self, size: int = Input(description="How big.", default=8, ge=1)) -> dict:
        pass
"""


def without_descriptions(document):
    """The document without the inputs' descriptions, which the contract does not fix."""
    for schema in document["components"]["schemas"]["Input"]["properties"].values():
        schema.pop("description", None)
    return document


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_predictor_equals_the_contract(predictor):
    contract = json.loads((ROOT / "tests" / "contract" / f"{predictor}.openapi.json").read_text())
    generated = openapi((ROOT / f"{predictor}.py").read_text())
    assert without_descriptions(generated) == contract
    inputs = generated["components"]["schemas"]["Input"]["properties"]
    expected = contract["components"]["schemas"]["Input"]["properties"]
    assert list(inputs) == sorted(expected, key=lambda name: expected[name]["x-order"])


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_input_has_a_description_of_one_line(predictor):
    inputs = openapi((ROOT / f"{predictor}.py").read_text())["components"]["schemas"]["Input"]
    for name, schema in inputs["properties"].items():
        assert schema["description"].endswith("."), name
        assert "\n" not in schema["description"]


def test_the_predictors_share_their_inputs_descriptions():
    found = [openapi((ROOT / f"{predictor}.py").read_text()) for predictor in PREDICTORS]
    predict, *others = (
        document["components"]["schemas"]["Input"]["properties"] for document in found
    )
    for other, expected in zip(others, [{"seed"}, set()], strict=True):
        assert {
            n for n in other if other[n]["description"] != predict[n]["description"]
        } == expected


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('"How big."', 'f"How big."'),
        ('"How big."', '"How " "big."'),
        ('"How big."', '("How big.")'),
        ('"How big."', "'How big.'"),
        ('"How big."', r'"How\nbig."'),
        ('"How big."', "DESCRIPTION"),
        ('"How big."', '"""How big."""'),
        ("default=8", "default=2 * 4"),
        ("default=8", "default=SIZE"),
        ("default=8", "default=None"),
        ("default=8", "default=(8)"),
        ("default=8", "**defaults"),
        ("ge=1", "gt=1"),
        ("ge=1", "min_length=1"),
        ("int =", "Literal[1, 2] ="),
        ("-> dict", "-> dict[str, str]"),
        ("Input(description=", "Input("),
        ("Input(description", "Field(description"),
    ],
)
def test_source_that_cog_would_drop_or_misread_is_refused(good, bad):
    assert openapi(SOURCE)
    assert good in SOURCE
    with pytest.raises(SchemaError):
        openapi(SOURCE.replace(good, bad))


def test_field_without_default_is_required_and_optional_is_nullable():
    required = openapi(SOURCE.replace(", default=8", ""))["components"]["schemas"]["Input"]
    assert required["required"] == ["size"]
    optional = openapi(SOURCE.replace(", default=8", "").replace("int =", "Optional[int] ="))
    inputs = optional["components"]["schemas"]["Input"]
    assert "required" not in inputs
    assert inputs["properties"]["size"]["nullable"] is True


def test_write_makes_the_folder_and_does_not_touch_an_equal_file(tmp_path):
    predictor, target = tmp_path / "predictor.py", tmp_path / ".cog" / "openapi_schema.json"
    predictor.write_text(SOURCE)
    write(predictor, target)
    before = target.stat().st_mtime_ns
    write(predictor, target)
    assert target.stat().st_mtime_ns == before
    assert json.loads(target.read_text()) == openapi(SOURCE)


DECORATED = """
class Predictor:
    {decorator}
    {kind} predict(self, prompt: str = Input(description="a")) -> dict:
        pass
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_predict_may_be_asynchronous(kind):
    document = openapi(DECORATED.format(kind=kind, decorator="@concurrent(max=8)"))
    assert "prompt" in document["components"]["schemas"]["Input"]["properties"]


@pytest.mark.parametrize(("decorator", "limit"), [("", 1), ("@concurrent(max=8)", 8)])
def test_the_concurrency_is_read_from_the_decorator(decorator, limit):
    assert concurrency(DECORATED.format(kind="async def", decorator=decorator)) == limit


def test_a_streaming_predictor_says_so_in_its_schema():
    source = DECORATED.format(kind="async def", decorator="@streaming\n    @concurrent(max=8)")
    with pytest.raises(SchemaError, match="only on iterators"):
        openapi(source)
    source = source.replace("-> dict", "-> AsyncIterator[dict]")
    assert openapi(source)["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
    assert concurrency(source) == 8
    without = openapi(source.replace("@streaming", ""))
    assert "x-cog-streaming" not in without["paths"]["/predictions"]["post"]


@pytest.mark.parametrize("decorator", ["@concurrent(max=2*4)", "@concurrent", "@other"])
def test_a_decorator_that_cog_would_not_read_is_refused(decorator):
    with pytest.raises(SchemaError, match="max=N"):
        concurrency(DECORATED.format(kind="async def", decorator=decorator))
