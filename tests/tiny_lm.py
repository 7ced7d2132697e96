"""A small audiocraft LMModel with random weights, the oracle of the engine's tests.

Its one conditioner takes a description "SEED:LENGTH" and returns that many random vectors, zeros
for the null, so that a test can hand the same tensors to the engine.
"""

import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.audiocraft_lm import audiocraft_lm
from musicgen.decoder.clip import Clip, Conditions, windows
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import Sampling
from musicgen.decoder.weights import LMConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from audiocraft.models.lm import LMModel
    from audiocraft.models.musicgen import MusicGen
    from audiocraft.modules.conditioners import (
        ConditioningAttributes,
        ConditioningProvider,
        TextConditioner,
        WavCondition,
    )

DELAYS = {4: (0, 1, 2, 3), 8: (0, 0, 1, 1, 2, 2, 3, 3)}
# audiocraft wants windows of more than 18 seconds.
MAX_LENGTH, STRIDE, FRAME_RATE = 40, 24, 2  # frames, frames, frames a second
CARD = 300


class RandomText(TextConditioner):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def tokenize(self, texts: list[str | None]) -> list[str | None]:
        return texts

    def forward(self, texts: list[str | None]) -> tuple[Tensor, Tensor]:
        found = [vectors(text, self.output_proj.in_features) for text in texts if text]
        rows = iter(found)
        made = torch.stack([next(rows) if text else torch.zeros_like(found[0]) for text in texts])
        return made, torch.ones(made.shape[:2])


def vectors(text: str, dim: int) -> Tensor:
    """ "SEED:LENGTH" -> [LENGTH, dim]."""
    seed, length = map(int, text.split(":"))
    return torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))


def tiny_config(
    cross: bool = True, n_q: int = 4, dim: int = 64, num_layers: int = 3, card: int = CARD
) -> LMConfig:
    return LMConfig(
        dim=dim,
        num_heads=4,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        n_q=n_q,
        card=card,
        delays=DELAYS[n_q],
        cross_attention=cross,
    )


def oracle_lm(config: LMConfig, seed: int = 0, half: bool = False, **layers: Any) -> LMModel:
    """An LMModel whose logits are not flat; `half`: with weights that are float16 numbers.

    `layers` are arguments of its transformer, such as a dtype.
    """
    torch.manual_seed(seed)
    conditions = ConditioningProvider({"description": RandomText(config.dim)})
    lm = audiocraft_lm(config, conditions, **layers)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if weight.dim() == 2 and not name.startswith("emb."):
                weight.mul_(3.0)
            elif "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
            if half:
                weight.copy_(weight.half().float())
    return lm


def engine_lm(oracle: LMModel, config: LMConfig) -> LM:
    state = oracle.state_dict()
    return LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)


def half_engine(config: LMConfig, slots: int, **options: Any) -> Engine:
    """An engine whose weights have float16 values, for short windows."""
    lm = engine_lm(oracle_lm(config, half=True), config)
    limits = {"max_length": MAX_LENGTH, "stride": STRIDE, "max_prefix": 16}
    return Engine(lm, slots=slots, **limits, **options)


def conditions(config: LMConfig, text: str) -> Conditions:
    """The conditions that `RandomText` makes of a description, and their null."""
    cond = vectors(text, config.dim)
    both = torch.stack([cond, torch.zeros_like(cond)])
    return Conditions(cross=both) if config.cross_attention else Conditions(prefix=both)


def clip(
    config: LMConfig,
    *,
    length: int = 20,
    seed: int = 7,
    text: str = "1:5",
    prompt: int = 0,
    **sampling: float,
) -> Clip:
    count = len(windows(prompt, length, MAX_LENGTH, STRIDE))
    return Clip(
        length=length,
        seed=seed,
        sampling=Sampling(**sampling),
        conditions=[conditions(config, text)] * count,
        prompt_codes=prompt_codes(config, prompt),
    )


def prompt_codes(config: LMConfig, frames: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(frames)
    made = torch.randint(config.card, (config.n_q, frames), generator=generator)
    return made if frames else None


def oracle_codes(oracle: LMModel, clip: Clip, text: str = "1:5") -> Tensor:
    """The codes [K, length] that audiocraft's `_generate_tokens` decodes for a clip."""
    codec = SimpleNamespace(eval=lambda: None, frame_rate=FRAME_RATE, sample_rate=FRAME_RATE)
    musicgen = MusicGen("tiny", codec, oracle, max_duration=MAX_LENGTH / FRAME_RATE)
    wanted = clip.sampling
    musicgen.set_generation_params(
        use_sampling=True,
        top_k=min(wanted.top_k, CARD),
        top_p=wanted.top_p,
        temperature=wanted.temperature,
        cfg_coef=wanted.cfg_coef,
        duration=clip.length / FRAME_RATE,
        extend_stride=STRIDE / FRAME_RATE,
    )
    no_melody = WavCondition(torch.zeros(1, 1, 1), torch.tensor([0]), [FRAME_RATE], [None])
    attributes = ConditioningAttributes(text={"description": text}, wav={"self_wav": no_melody})
    if clip.length <= MAX_LENGTH:
        attributes.wav.clear()
    prompt = None if clip.prompt_codes is None else clip.prompt_codes[None]
    torch.manual_seed(clip.seed)
    codes: Tensor = musicgen._generate_tokens([attributes], prompt)[0]
    return codes
