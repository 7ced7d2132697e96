"""Small random checkpoints in the upstream format, so that everything runs without a download.

They have real MusicGen's structure at a fraction of its size, are the same on every machine, and
are untrained: what they generate is noise.
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

from musicgen.audiocraft import (
    ConditionFuser,
    ConditioningProvider,
    DelayedPatternProvider,
    LMModel,
    get_compression_model,
    get_diffusion_model,
    get_processor,
)
from musicgen.checkpoints.checkpoint import (
    CODEC_FILE,
    DEMUCS_FILE,
    DIFFUSION_FILE,
    LM_FILE,
    PROVIDER_PREFIX,
)

#        kind -> (stereo, melody)
KINDS = {
    "text": (False, False),
    "melody": (False, True),
    "stereo": (True, False),
    "stereo-melody": (True, True),
}
#   band -> (rescale to noise's spectrum, power of that), as upstream's grid has it
DIFFUSION_BANDS = [(False, 0.4), (False, 0.4), (True, 0.4), (True, 0.75)]
SEED = 20230608
SAMPLE_RATE = 32000
CARD = 2048
DIM = 64
T5_NAME = "t5-base"
T5_WIDTH = 32
N_CHROMA = 12


def write_checkpoint(folder: Path, kind: str) -> None:
    """Write a random checkpoint of `kind` into `folder`, about 11 MB, always the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # From inside of audiocraft; nobody here can act on it.
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated")
        torch.manual_seed(SEED)
        config = lm_config(kind)
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
    """Add random Multi-Band Diffusion to a checkpoint of any kind: 1.6 MB, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        package: dict[Any, Any] = {"sample_rate": SAMPLE_RATE, "n_bands": len(DIFFUSION_BANDS)}
        package |= {index: diffusion_band(index) for index in range(len(DIFFUSION_BANDS))}
        torch.save(package, folder / DIFFUSION_FILE)


def lm_config(kind: str) -> dict[str, Any]:
    """A MusicGen training configuration, as far as inference reads it."""
    stereo, melody = KINDS[kind]
    conditioners: dict[str, Any] = {
        "args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5},
        "description": {
            "model": "t5",
            "t5": {
                "name": T5_NAME,
                "finetune": False,
                "word_dropout": 0.3,
                "normalize_text": False,
            },
        },
    }
    if melody:
        conditioners["self_wav"] = {
            "model": "chroma_stem",
            "chroma_stem": {
                "sample_rate": 32000,
                "n_chroma": N_CHROMA,
                "radix2_exp": 14,
                "argmax": True,
                "match_len_on_eval": False,
                "eval_wavs": None,
                "n_eval_wavs": 100,
                "cache_path": None,
            },
        }
    return {
        "device": "cpu",
        "dtype": "float32",
        "dataset": {"segment_duration": 30},
        "lm_model": "transformer_lm",
        "transformer_lm": {
            "dim": DIM,
            "num_heads": 4,
            "num_layers": 2,
            "hidden_scale": 4,
            "n_q": 8 if stereo else 4,
            "card": CARD,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {
                "delays": [k // 2 for k in range(8)] if stereo else list(range(4)),
                "flatten_first": 0,
                "empty_initial": 0,
            },
        },
        "attribute_dropout": {"args": {"active_on_eval": False}},
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "conditioners": conditioners,
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": ["self_wav", "description"] if melody else [],
            "cross": [] if melody else ["description"],
            "input_interpolate": [],
        },
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
    }


def lm_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random decoder and projections in fp16, as upstream ships them."""
    arguments = dict(config["transformer_lm"])
    pattern = DelayedPatternProvider(
        arguments["n_q"], config["codebooks_pattern"]["delay"]["delays"]
    )
    fuse = ("sum", "prepend", "cross", "input_interpolate")
    fuser = ConditionFuser({method: config["fuser"][method] for method in fuse})
    arguments["cross_attention"] = bool(config["fuser"]["cross"])
    # The same parameters without xformers, which the configuration asks for.
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
        # A buffer of audiocraft's spectrogram that is saved along.
        window = torch.hann_window(
            2 ** config["conditioners"]["self_wav"]["chroma_stem"]["radix2_exp"]
        )
        state[f"{PROVIDER_PREFIX}self_wav.chroma.spec.window"] = window
    return state


def codec_config() -> dict[str, Any]:
    """EnCodec at 32 kHz and 50 frames/s with 4 codebooks, as MusicGen's, but 16 times narrower."""
    return {
        "device": "cpu",
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": 32000,
            "channels": 1,
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "dimension": 32,
            "channels": 1,
            "causal": False,
            "n_filters": 4,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "disable_norm_outer_blocks": 0,
            "encoder": {},
            "decoder": {
                "trim_right_ratio": 1.0,
                "final_activation": None,
                "final_activation_params": None,
            },
        },
        "rvq": {
            "n_q": 4,
            "q_dropout": False,
            "bins": CARD,
            "decay": 0.99,
            "kmeans_init": False,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
            "orthogonal_reg_max_codes": None,
        },
    }


def diffusion_band(index: int) -> dict[str, Any]:
    """One band's configuration, model and processor in the form that upstream releases."""
    config = OmegaConf.create(diffusion_config(index))
    processor = get_processor(config.processor, SAMPLE_RATE)
    # What a processor learns from its first clips: here, of noise whose treble is weak.
    processor.project_sample(torch.randn(8, 1, SAMPLE_RATE // 10).cumsum(-1) / 100)
    return {
        "cfg": config,
        "model_state": get_diffusion_model(config).state_dict(),
        "processor_state": processor.state_dict(),
    }


def diffusion_config(index: int) -> dict[str, Any]:
    """audiocraft's config/solver/diffusion/default.yaml and grid for 32 kHz, 12 times narrower."""
    use_processor, power_std = DIFFUSION_BANDS[index]
    return {
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        "diffusion_unet": {
            "hidden": 4,
            "depth": 4,
            "res_blocks": 1,
            "norm_groups": 4,
            "kernel": 8,
            "stride": 4,
            "growth": 2,
            "max_channels": 10_000,
            "dropout": 0.0,
            "emb_all_layers": True,
            "bilstm": False,
            "codec_dim": codec_config()["seanet"]["dimension"],
            "transformer": False,
            "cross_attention": False,
        },
        "processor": {
            "name": "multi_band_processor",
            "use": use_processor,
            "n_bands": 8,
            "num_samples": 10_000,
            "power_std": power_std,
        },
        "filter": {"use": True, "n_bands": 4, "idx_band": index, "cutoffs": None},
        "schedule": {
            "repartition": "power",
            "variable_step_batch": True,
            "beta_t0": 1.0e-5,
            "beta_t1": 2.9e-2,
            "beta_exp": 7.5,
            "num_steps": 1000,
            "variance": "beta",
            "clip": 5.0,
            "rescale": 1.0,
            "n_bands": None,
            "noise_scale": 1.0,
        },
        "metrics": {"num_stage": 4, "sample_rates": [SAMPLE_RATE]},
    }


def write_t5(folder: Path) -> None:
    """A random T5 encoder, and a tokenizer that knows single characters of ASCII."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(pieces), d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    T5EncoderModel(config).save_pretrained(folder)


def demucs_package() -> dict[str, Any]:
    """A narrow HTDemucs in the form that its authors' `serialize_model` writes."""
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
