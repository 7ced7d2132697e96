"""Checks that a configuration is that of a MusicGen this server can decode.

Every setting that would change the music is followed or refused by its name, never ignored.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen.checkpoints.limits import check_numbers
from musicgen.errors import WeightsError

# Setting of upstream's training configuration -> the only supported value. It may be absent.
REQUIRED: dict[str, object] = {
    "lm_model": "transformer_lm",
    "transformer_lm.activation": "gelu",
    "transformer_lm.bias_attn": False,
    "transformer_lm.bias_ff": False,
    "transformer_lm.bias_proj": False,
    "transformer_lm.causal": True,
    "transformer_lm.kv_repeat": 1,
    "transformer_lm.layer_scale": None,
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.norm_first": True,
    "transformer_lm.past_context": None,
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "codebooks_pattern.modeling": "delay",
    "codebooks_pattern.delay.flatten_first": 0,
    "codebooks_pattern.delay.empty_initial": 0,
    "interleave_stereo_codebooks.per_timestep": False,
    "fuser.cross_attention_pos_emb": False,
    "fuser.sum": [],
    "fuser.input_interpolate": [],
    "conditioners.description.t5.normalize_text": False,
}
# Number -> the largest accepted value, far above any MusicGen's.
LIMITS: dict[str, int | float] = {
    "transformer_lm.dim": 2**15,
    "transformer_lm.num_heads": 2**10,
    "transformer_lm.num_layers": 2**10,
    "transformer_lm.hidden_scale": 64.0,
    "transformer_lm.n_q": 2**6,
    "transformer_lm.card": 2**20,
    "dataset.segment_duration": 600.0,
}
MAX_DELAY = 2**8
CHROMA = "conditioners.self_wav.chroma_stem"
MELODY_LIMITS: dict[str, int | float] = {
    f"{CHROMA}.sample_rate": 2**18,
    f"{CHROMA}.n_chroma": 2**6,
    f"{CHROMA}.radix2_exp": 16,
}
MAX_MELODY_FRAMES = 2**14  # of one window; MusicGen has 235
CROSS, PREPEND = "fuser.cross", "fuser.prepend"
USED_CODEBOOKS = "compression_model_n_q"
CONDITIONERS = {"description": "t5", "self_wav": "chroma_stem"}  # name -> kind
# Every setting that is read of a training configuration.
LM_SETTINGS = (
    "lm_model",
    "transformer_lm",
    "codebooks_pattern",
    "conditioners",
    "fuser",
    "interleave_stereo_codebooks",
    USED_CODEBOOKS,
    "dataset.segment_duration",
)


def check_architecture(path: Path, config: DictConfig) -> None:
    """Raise WeightsError, naming file and setting, for a model that this decoder cannot run."""
    _check_conditioners(path, config)
    _check_required(path, config)
    _check_limits(path, config)
    _check_combinations(path, config)


def _check_conditioners(path: Path, config: DictConfig) -> None:
    specs = {str(key): spec for key, spec in config.conditioners.items() if key != "args"}
    for name, spec in specs.items():
        if CONDITIONERS.get(name) != spec.model:
            raise WeightsError(
                f"{path}: conditioner {name} ({spec.model}) is not supported (it is that of "
                "musicgen-style); weights/README.md lists the supported models."
            )


def _check_required(path: Path, config: DictConfig) -> None:
    for key, expected in REQUIRED.items():
        found = _value(config, key, expected)
        if found != expected:
            raise WeightsError(
                f"{path}: {key}={found!r} is not supported; the value of a MusicGen is "
                f"{expected!r}."
            )


def _check_limits(path: Path, config: DictConfig) -> None:
    has_melody = _value(config, "conditioners.self_wav", None) is not None
    limits = LIMITS | (MELODY_LIMITS if has_melody else {})
    check_numbers(path, {key: _value(config, key, None) for key in limits}, limits)
    if has_melody:
        rate, exponent, seconds = (
            _value(config, key, None)
            for key in (f"{CHROMA}.sample_rate", f"{CHROMA}.radix2_exp", "dataset.segment_duration")
        )
        frames = seconds * rate / 2**exponent * 4
        if frames > MAX_MELODY_FRAMES:
            raise WeightsError(
                f"{path}: {CHROMA}.radix2_exp={exponent} gives {frames:.0f} frames of melody for "
                f"each window; at most {MAX_MELODY_FRAMES} are supported."
            )


def _check_combinations(path: Path, config: DictConfig) -> None:
    cross, prepend = _value(config, CROSS, []), _value(config, PREPEND, [])
    n_q, used = _value(config, "transformer_lm.n_q", 0), _value(config, USED_CODEBOOKS, None)
    heads, dim = (_value(config, f"transformer_lm.{key}", 1) for key in ("num_heads", "dim"))
    delays = _value(config, "codebooks_pattern.delay.delays", None) or [0] * n_q
    numbers = [delay for delay in delays if type(delay) is int]
    channels = 2 if _value(config, "interleave_stereo_codebooks.use", False) else 1
    problems = {
        f"{CROSS}={cross} and {PREPEND}={prepend} are both in use": cross and prepend,
        f"{CROSS}={cross} has more than the description": cross not in ([], ["description"]),
        f"transformer_lm.dim={dim} is not a multiple of num_heads={heads}": dim % heads != 0,
        f"codebooks_pattern.delay.delays={delays} are not {n_q} whole numbers": not len(numbers)
        == len(delays)
        == n_q,
        f"codebooks_pattern.delay.delays={delays} do not begin at 0": min(numbers, default=0) != 0,
        f"codebooks_pattern.delay.delays={delays} exceed {MAX_DELAY}": max(numbers, default=0)
        > MAX_DELAY,
        f"{USED_CODEBOOKS}={used} is not transformer_lm.n_q={n_q}": used is not None
        and used * channels != n_q,
    }
    for problem, found in problems.items():
        if found:
            raise WeightsError(f"{path}: {problem}; this server cannot decode it.")


def _value(config: DictConfig, key: str, default: Any) -> Any:
    """A setting as plain data, or `default` if it is absent."""
    found = OmegaConf.select(config, key, default=default)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
