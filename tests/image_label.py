"""Compares the schema in the label of a built image with the contract.

python tests/image_label.py IMAGE PREDICTOR
"""

import json
import subprocess
import sys
from pathlib import Path

CONTRACT = Path(__file__).parent / "contract"
LABEL = "run.cog.openapi_schema"


def assert_contract(document, predictor):
    """Fail unless an OpenAPI document describes the same API as the contract of `predictor`.

    The inputs' descriptions are this project's own; each has to exist.
    """
    inputs = document["components"]["schemas"]["Input"]["properties"]
    assert all(schema.pop("description") for schema in inputs.values())
    contract = json.loads((CONTRACT / f"{predictor}.openapi.json").read_text())
    assert document["components"] == contract["components"]
    streams = [one["paths"]["/predictions"]["post"] for one in (document, contract)]
    assert streams[0].get("x-cog-streaming") == streams[1].get("x-cog-streaming")


def main():
    image, predictor = sys.argv[1:]
    template = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    command = ["docker", "inspect", "--format", template, image]
    label = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert_contract(json.loads(label), predictor)


if __name__ == "__main__":
    main()
