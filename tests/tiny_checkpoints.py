"""Small random checkpoints in audiocraft's upstream format, so that tests need no download.

They have the structure of a real MusicGen at a fraction of its size, and the same bytes on every
machine. They are untrained: they generate noise.
"""

import fractions
import warnings
from pathlib import Path
from typing import Any

import torch
from demucs.htdemucs import HTDemucs
from demucs.states import get_state
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel, T5Tokenizer
from transformers.utils.logging import disable_progress_bar

from musicgen.checkpoints.checkpoint import (
    CODEC_FILE,
    DEMUCS_FILE,
    DIFFUSION_FILE,
    PROVIDER_PREFIX,
)
from musicgen.checkpoints.folders import LM_FILE
from musicgen.rendering.audiocraft import (
    ConditionFuser,
    ConditioningProvider,
    DelayedPatternProvider,
    LMModel,
    get_compression_model,
    get_diffusion_model,
    get_processor,
)
from training.configs import (
    DIFFUSION_BANDS,
    DIM,
    KINDS,
    N_CHROMA,
    SAMPLE_RATE,
    T5_NAME,
    T5_WIDTH,
    codec_config,
    diffusion_config,
    lm_config,
)

SEED = 20230608


def write_checkpoint(folder: Path, kind: str, segment_duration: int = 30) -> None:
    """Write a random checkpoint of `kind` into `folder`, about 11 MB, always the same bytes.

    `segment_duration` is the length of the model's window in seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Raised inside audiocraft.
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")
        torch.manual_seed(SEED)
        config = lm_config(kind)
        config["dataset"]["segment_duration"] = segment_duration
        torch.save(
            {"xp.cfg": OmegaConf.to_yaml(OmegaConf.create(config)), "best_state": lm_state(config)},
            folder / LM_FILE,
        )
        codec = OmegaConf.create(codec_config())
        state = get_compression_model(codec).state_dict()
        torch.save({"xp.cfg": OmegaConf.to_yaml(codec), "best_state": state}, folder / CODEC_FILE)
        write_t5(folder / T5_NAME)
        if KINDS[kind][1]:
            torch.save(demucs_package(), folder / DEMUCS_FILE)


def write_diffusion(folder: Path) -> None:
    """Add random Multi-Band Diffusion to a checkpoint: 1.6 MB, always the same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        package: dict[Any, Any] = {"sample_rate": SAMPLE_RATE, "n_bands": len(DIFFUSION_BANDS)}
        package |= {index: diffusion_band(index) for index in range(len(DIFFUSION_BANDS))}
        torch.save(package, folder / DIFFUSION_FILE)


def lm_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random decoder and projections in fp16, as upstream ships them."""
    arguments = dict(config["transformer_lm"])
    pattern = DelayedPatternProvider(
        arguments["n_q"], config["codebooks_pattern"]["delay"]["delays"]
    )
    fuse = ("sum", "prepend", "cross", "input_interpolate")
    fuser = ConditionFuser({method: config["fuser"][method] for method in fuse})
    arguments["cross_attention"] = bool(config["fuser"]["cross"])
    # The configuration asks for xformers; without it, the parameters are the same.
    arguments |= {"custom": True, "memory_efficient": False}
    model = LMModel(pattern, ConditioningProvider({}), fuser, **arguments)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for k in range(arguments["n_q"]):
        state[f"linears.{k}.weight"] *= 4  # logits with a clear order, so that settings matter
    widths = {"description": T5_WIDTH, "self_wav": N_CHROMA}
    for name in (name for name in config["conditioners"] if name != "args"):
        layer = torch.nn.Linear(widths[name], DIM)
        for key, value in layer.state_dict().items():
            state[f"{PROVIDER_PREFIX}{name}.output_proj.{key}"] = value * 4
    state = {name: value.half() for name, value in state.items()}
    if "self_wav" in config["conditioners"]:
        # A buffer of audiocraft's spectrogram, part of a real state.
        window = torch.hann_window(
            2 ** config["conditioners"]["self_wav"]["chroma_stem"]["radix2_exp"]
        )
        state[f"{PROVIDER_PREFIX}self_wav.chroma.spec.window"] = window
    return state


def diffusion_band(index: int) -> dict[str, Any]:
    """One band's configuration, model and processor, as in upstream's file."""
    config = OmegaConf.create(diffusion_config(index))
    # Upstream's are composed by hydra, which leaves a date in this cache.
    config._metadata.resolver_cache["now"]["%Y-%m-%d"] = "2023-06-08"
    processor = get_processor(config.processor, SAMPLE_RATE)
    # A processor learns statistics from its first clips; here, from noise with weak treble.
    processor.project_sample(torch.randn(8, 1, SAMPLE_RATE // 10).cumsum(-1) / 100)
    return {
        "cfg": config,
        "model_state": get_diffusion_model(config).state_dict(),
        "processor_state": processor.state_dict(),
    }


def write_t5(folder: Path) -> None:
    """A random T5 encoder, and a tokenizer whose pieces are the single characters of ASCII."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(pieces), d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    T5EncoderModel(config).save_pretrained(folder)


def demucs_package() -> dict[str, Any]:
    """A narrow HTDemucs in the format of its authors' `serialize_model`."""
    kwargs = {
        "sources": ["drums", "bass", "other", "vocals"],
        "channels": 4,
        "dconv_mode": 0,
        "bottom_channels": 16,
        "t_layers": 1,
        "t_heads": 1,
        "segment": fractions.Fraction(3, 2),
        "samplerate": 44100,
    }
    model = HTDemucs(**kwargs)
    state = get_state(model, None, half=True)
    return {"klass": HTDemucs, "args": (), "kwargs": kwargs, "state": state, "training_args": {}}
