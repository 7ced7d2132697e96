"""Configurations of small models: upstream's training configurations at a fraction of the size."""

from typing import Any

#        kind -> (stereo, melody)
KINDS = {
    "text": (False, False),
    "melody": (False, True),
    "stereo": (True, False),
    "stereo-melody": (True, True),
}
#   band -> (use the processor, its power_std), as in upstream's grid
DIFFUSION_BANDS = [(False, 0.4), (False, 0.4), (True, 0.4), (True, 0.75)]
SAMPLE_RATE = 32000
CARD = 2048
DIM = 64
T5_NAME = "t5-base"
T5_WIDTH = 32
N_CHROMA = 12


def lm_config(kind: str) -> dict[str, Any]:
    """The settings of a MusicGen training configuration that inference reads, and some others."""
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


def codec_config() -> dict[str, Any]:
    """MusicGen's EnCodec (32 kHz, 50 frames/s, 4 codebooks), 16 times narrower."""
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
