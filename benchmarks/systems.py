"""The systems compared: this engine and the baselines audiocraft and transformers (two variants).

All have the same shapes and weights, guidance 3 and top_k 250, and run their own `generate` as
their users call it: in float16 on CUDA, in float32 on the CPU (where this engine stores weights in
float16 if they are exact in it). A baseline's library is imported when it is measured, so a missing
library makes only that baseline absent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.audiocraft_lm import GUIDANCE, FixedConditions, audiocraft_lm
from benchmarks.work import Storage, Work
from musicgen.decoder.clip import Clip, Conditions
from musicgen.decoder.engine import Engine
from musicgen.decoder.kernels import Ops
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import Sampling
from musicgen.decoder.weights import LMConfig

TOP_K = 250
StateDict = Mapping[str, Tensor]
Tick = Callable[[], None]


class SystemAbsentError(Exception):
    """The system cannot be compared on this machine; the message says why."""


@dataclass(frozen=True)
class System:
    """A decoder: `decode(prompt, tick)` decodes a batch and calls `tick` after each step.

    It continues prompt [K, T0] if there is one. `tick` may raise to end the call.
    """

    decode: Callable[[Tensor | None, Tick], object]
    storage: Storage
    warm_up: Callable[[], None] = lambda: None
    note: Callable[[], str] = lambda: ""  # known after the warm-up


def ours(work: Work, state: StateDict, ops: Ops | None = None, *, fast: bool = False) -> System:
    """Returns this engine, constructed as the pipeline does; `ops` replaces its operations."""
    dtype = torch.float16 if ops else work.half  # float32 weights on a CPU belong to its operations
    lm = LM.from_audiocraft(
        work.config,
        state,
        device=work.device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        fast=fast,
    )
    no_melody = torch.zeros(work.melody_length, work.config.dim)
    engine = Engine(
        lm,
        max_length=work.frames,
        stride=max(1, work.frames // 2),
        slots=work.batch,
        max_prefix=max(work.prefix_length, work.cross_length),
        shared_prefix=no_melody if work.melody_length else None,
        ops=ops,
    )
    condition = work.condition().to(work.device)
    both = torch.stack([condition, torch.zeros_like(condition)])
    prepended = Conditions(prefix=both, shared=work.shared_prefix)
    given = Conditions(cross=both) if work.cross_length else prepended
    sampling = Sampling(top_k=TOP_K, cfg_coef=GUIDANCE)

    def decode(prompt: Tensor | None, tick: Tick) -> object:
        clips = [
            Clip(work.frames, seed, sampling, [given], prompt_codes=prompt)
            for seed in range(work.batch)
        ]
        return engine.generate(clips, progress=lambda done, total: tick())

    storage = Storage(lm.heads.itemsize, lm.cache_dtype.itemsize)
    return System(decode, storage, engine.warm_up, lambda: engine.decode_steps.description)


def ours_fast(work: Work, state: StateDict) -> System:
    """Returns this engine with int8 weights, and keys and values in float16."""
    if work.device.type != "cpu":
        raise SystemAbsentError("the fast mode is for the CPU only")
    return ours(work, state, fast=True)


def audiocraft(work: Work, state: StateDict) -> System:
    """Returns audiocraft's LMModel, configured like the published checkpoints."""
    from musicgen.rendering.audiocraft import ConditioningAttributes, TorchAutocast

    condition = work.condition().to(work.device)[None].expand(work.batch, -1, -1)
    conditions = FixedConditions(torch.cat([condition, torch.zeros_like(condition)]))
    with torch.device("meta"):
        lm = audiocraft_lm(work.config, nn.Module(), dtype=work.half)
    lm = lm.to_empty(device=work.device)
    lm.load_state_dict(state)
    lm.condition_provider = conditions
    attributes = [ConditioningAttributes(text={"description": "any"}) for _ in range(work.batch)]
    autocast = TorchAutocast(work.device.type == "cuda", "cuda", dtype=torch.float16)

    def decode(prompt: Tensor | None, tick: Tick) -> object:
        with autocast:
            return lm.generate(
                None if prompt is None else prompt.expand(work.batch, -1, -1),
                attributes,
                max_gen_len=work.frames,
                top_k=TOP_K,
                callback=lambda done, total: tick(),
            )

    return System(decode, Storage(work.half.itemsize, work.half.itemsize))


def transformers_eager(work: Work, state: StateDict) -> System:
    """Returns transformers' MusicGen with its default cache.

    Its time to the first code includes a second prefill, which transformers 5 does for text models.
    """
    model, inputs = _transformers(work, state)

    def decode(prompt: Tensor | None, tick: Tick) -> object:
        given = {} if prompt is None else {"decoder_input_ids": prompt.repeat(work.batch, 1)}
        return model.generate(**inputs, **given, stopping_criteria=_ticking(work, tick))

    return System(decode, Storage(work.half.itemsize, work.half.itemsize))


def transformers_static(work: Work, state: StateDict) -> System:
    """Returns transformers' MusicGen with a static cache; `generate` then compiles the decoder.

    The cache is passed as an object, because MusicGen's `generate` in transformers 5 ignores
    `cache_implementation="static"` (text models) or fails with it (melody models). Attention reads
    the whole static cache at every step, so the context does not matter: all calls start at 0.
    """
    if work.device.type != "cuda":
        raise SystemAbsentError("transformers compiles its decoder on CUDA only")
    return transformers_with_static_cache(work, state)


def transformers_with_static_cache(work: Work, state: StateDict) -> System:
    """Returns `transformers_static` for any device; transformers compiles it on CUDA only."""
    from transformers import EncoderDecoderCache, StaticCache

    model, inputs = _transformers(work, state)
    decoder = model.decoder.config
    # transformers 5 prefills a given cache twice with text models: one more position.
    cache = StaticCache(decoder, max_cache_len=work.prefix_length + work.steps + 1)
    if work.cross_length:
        cross = StaticCache(decoder, max_cache_len=work.cross_length)
        cache = EncoderDecoderCache(cache, cross)

    def decode(prompt: Tensor | None, tick: Tick) -> object:
        cache.reset()
        return model.generate(
            **inputs, past_key_values=cache, stopping_criteria=_ticking(work, tick)
        )

    storage = Storage(work.half.itemsize, work.half.itemsize)
    return System(decode, storage, note=lambda: "timed from context 0")


def _transformers(work: Work, state: StateDict) -> tuple[Any, dict[str, Any]]:
    """Returns the model, with minimal encoders, and the arguments of its `generate`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    family = "Musicgen" if work.config.cross_attention else "MusicgenMelody"
    text = transformers.T5Config(
        vocab_size=32, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4
    )
    codec = transformers.EncodecConfig(num_filters=4, hidden_size=16, num_lstm_layers=1)
    with torch.device("meta"):
        # transformers exports only the composite configuration, which contains the decoder's.
        composite = getattr(transformers, f"{family}Config")
        config = composite(text_encoder=text, audio_encoder=codec, decoder=_decoder(work.config))
        decoder = getattr(transformers, f"{family}ForCausalLM")(config.decoder).to(work.half)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(
        text_encoder=transformers.T5EncoderModel(text),
        audio_encoder=transformers.EncodecModel(codec),
        decoder=decoder,
    )
    decoder.set_attn_implementation("sdpa")  # the choice of `from_pretrained`
    decoder.to_empty(device=work.device)
    decoder.load_state_dict(_renamed(work.config, state))
    positions = decoder.model.decoder.embed_positions
    positions.make_weights(positions.num_positions, positions.embedding_dim)
    model = model.to(work.device, work.half).eval().requires_grad_(False)

    ids = torch.full((work.batch, work.text_length), 3, device=work.device)
    inputs: dict[str, Any] = {
        "inputs": ids,
        "attention_mask": torch.ones_like(ids),
        "do_sample": True,
        "top_k": TOP_K,
        "guidance_scale": GUIDANCE,
        "max_length": 1 + work.steps,
        "bos_token_id": work.config.special_token_id,
        "pad_token_id": work.config.special_token_id,
        "decoder_start_token_id": work.config.special_token_id,
    }
    if work.melody_length:
        chroma = torch.zeros(work.batch, work.melody_length, config.num_chroma)
        chroma[..., 0] = 1
        inputs["input_features"] = chroma.to(work.device, work.half)
    return model, inputs


def _decoder(config: LMConfig) -> dict[str, Any]:
    """Returns the decoder's configuration under transformers' names."""
    return {
        "vocab_size": config.card,
        "hidden_size": config.dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "ffn_dim": config.ffn_dim,
        "num_codebooks": config.n_q,
        "audio_channels": 2 if len(set(config.delays)) < config.n_q else 1,
    }


def _renamed(config: LMConfig, state: StateDict) -> dict[str, Tensor]:
    """Returns an audiocraft decoder's weights under the names of transformers' ForCausalLM."""
    from musicgen.checkpoints.transformers_musicgen import decoder_names

    names = decoder_names(config.num_layers, config.n_q)
    return {
        name.removeprefix("decoder."): part
        for ours, tensor in state.items()
        for name, part in zip(names[ours], tensor.chunk(len(names[ours])), strict=True)
    }


def _ticking(work: Work, tick: Tick) -> list[Callable[..., Tensor]]:
    """Returns a stopping criterion that never stops and calls `tick` once per step."""
    never = torch.zeros(work.batch * work.config.n_q, dtype=torch.bool, device=work.device)

    def criterion(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        tick()
        return never

    return [criterion]


SYSTEMS: dict[str, Callable[[Work, StateDict], System]] = {
    "ours": ours,
    "ours fast": ours_fast,
    "audiocraft": audiocraft,
    "transformers": transformers_eager,
    "transformers static": transformers_static,
}
