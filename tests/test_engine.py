"""The engine against audiocraft's own loop, and against itself in other company."""

import pytest
import torch
from tiny_lm import (
    MAX_LENGTH,
    STRIDE,
    clip,
    engine_lm,
    oracle_codes,
    oracle_lm,
    tiny_config,
)

from musicgen.engine import Engine

SHAPES = {"cross": (True, 4), "prepend": (False, 4), "stereo": (False, 8), "cross8": (True, 8)}
CASES = {
    "top_k": {},
    "no_limit": {"top_k": 0},
    "top_k_above_card": {"top_k": 5000},
    "top_p": {"top_p": 0.8},
    "greedy": {"temperature": 0.0},
    "cool_and_strongly_guided": {"temperature": 0.7, "cfg_coef": 5.5, "top_k": 17},
    "prompt": {"prompt": 6},
    "prompt_greedy": {"prompt": 6, "temperature": 0.0},
    "windows": {"length": 70},
    "windows_greedy": {"length": 70, "temperature": 0.0},
    "windows_with_prompt": {"length": 100, "prompt": 13},
    "full_window": {"length": MAX_LENGTH},
    "one_frame": {"length": 1},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def models(request):
    config = tiny_config(*SHAPES[request.param])
    oracle = oracle_lm(config)
    return config, oracle, engine(engine_lm(oracle, config))


def engine(lm):
    return Engine(lm, max_length=MAX_LENGTH, stride=STRIDE)


@pytest.mark.parametrize("case", CASES)
def test_codes_are_audiocrafts(models, case):
    config, oracle, engine = models
    asked = clip(config, **CASES[case])
    codes = engine.generate([asked])[0]
    assert codes.dtype == torch.int64
    assert torch.equal(codes, oracle_codes(oracle, asked))
