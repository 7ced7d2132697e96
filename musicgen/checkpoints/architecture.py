"""What every supported MusicGen has in common: anything else is refused by the name of its setting.

A setting that is accepted but not followed would change the music without a word.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen.errors import WeightsError

# Setting of upstream's training configuration -> what it must be, where it is there at all.
GRANTED: dict[str, object] = {
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
# What is counted, and the most of it that a MusicGen could have: more would fill the memory before
# anything notices that the weights are not there.
LIMITS: dict[str, int] = {
    "transformer_lm.dim": 2**15,
    "transformer_lm.num_heads": 2**10,
    "transformer_lm.num_layers": 2**10,
    "transformer_lm.hidden_scale": 2**6,
    "transformer_lm.n_q": 2**6,
    "transformer_lm.card": 2**20,
    "dataset.segment_duration": 2**10,
}
MELODY_LIMITS: dict[str, int] = {"sample_rate": 2**20, "n_chroma": 2**10, "radix2_exp": 20}
CROSS, PREPEND = "fuser.cross", "fuser.prepend"


def check_architecture(path: Path, config: DictConfig) -> None:
    """Raise WeightsError, naming file and setting, for what this decoder does not compute."""
    for key, expected in GRANTED.items():
        found = _value(config, key, expected)
        if found != expected:
            raise WeightsError(
                f"{path}: {key}={found!r} is not MusicGen's ({expected!r}); this server cannot "
                "decode it."
            )
    melody = {
        f"conditioners.self_wav.chroma_stem.{name}": limit for name, limit in MELODY_LIMITS.items()
    }
    has_melody = _value(config, "conditioners.self_wav", None) is not None
    for key, limit in (LIMITS | (melody if has_melody else {})).items():
        found = _value(config, key, None)
        if not isinstance(found, int | float) or not 0 < found <= limit:
            raise WeightsError(f"{path}: {key}={found!r} is not a number up to {limit}.")
    cross, prepend = _value(config, CROSS, []), _value(config, PREPEND, [])
    codebooks, delays = _value(config, "transformer_lm.n_q", 0), _delays(config)
    used = _value(config, "compression_model_n_q", None)
    halves = 2 if _value(config, "interleave_stereo_codebooks.use", False) else 1
    problems = {
        f"{CROSS}={cross} and {PREPEND}={prepend} are both in use": cross and prepend,
        f"{CROSS}={cross} has more than the description": cross not in ([], ["description"]),
        f"codebooks_pattern.delay.delays={delays} do not begin at 0": min(delays, default=0) != 0,
        f"compression_model_n_q={used} is not transformer_lm.n_q={codebooks}": used is not None
        and used * halves != codebooks,
    }
    for problem, found in problems.items():
        if found:
            raise WeightsError(f"{path}: {problem}; this server cannot decode it.")


def _delays(config: DictConfig) -> list[int]:
    return _value(config, "codebooks_pattern.delay.delays", None) or []


def _value(config: DictConfig, key: str, default: Any) -> Any:
    """A setting as plain data, the default where it is not there."""
    found = OmegaConf.select(config, key, default=default)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
