"""How often the engine's codes are audiocraft's: random generations on small random decoders.

Both draw the same noise, so codes differ only where rounding decides between two of them. Each
difference is explained: after the same codes the logits of both are compared. If they agree to
TOLERANCE, and each code follows from its own logits, it was a tie; anything else is an error.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musicgen.decoder import kernels
from musicgen.decoder.clip import Clip, Conditions
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.pattern import interleave
from musicgen.decoder.sampling import Sampling, SamplingRows, sample_each
from musicgen.decoder.weights import LMConfig

TOLERANCE = 1e-4  # of logits whose standard deviation is about 2
MAX_FRAMES = 60
DIM, HEADS, LAYERS, CARD = 64, 4, 3, 300
DELAYS = {4: (0, 1, 2, 3), 8: (0, 0, 1, 1, 2, 2, 3, 3)}
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "top_k 250": Sampling(top_k=250),
    "top_k 20, temperature 0.7, guidance 5": Sampling(top_k=20, temperature=0.7, cfg_coef=5.0),
    "no limit": Sampling(top_k=0),
    "top_p 0.9": Sampling(top_p=0.9),
    "top_p 0.99, temperature 1.7, guidance 7": Sampling(top_p=0.99, temperature=1.7, cfg_coef=7.0),
}


@dataclass(frozen=True)
class Difference:
    """The first step at which a generation differs from audiocraft's."""

    setting: str
    step: int
    logits: float  # the largest difference between the logits there
    tie: bool


def main(generations: int, seed: int) -> None:
    """Print a table by setting, then one line of JSON; exit 1 for an unexplained difference."""
    systems = [
        System(cross, n_q, half) for cross in (True, False) for n_q in (4, 8) for half in (0, 1)
    ]
    choice = random.Random(seed)
    counts = dict.fromkeys(SETTINGS, 0)
    found: list[Difference] = []
    for index in range(generations):
        name = list(SETTINGS)[index % len(SETTINGS)]
        counts[name] += 1
        found += choice.choice(systems).compare(name, choice)
    print(table(counts, found))
    print(json.dumps(document(counts, found)))
    if not all(one.tie for one in found):
        raise SystemExit(1)


def table(counts: dict[str, int], found: list[Difference]) -> str:
    """Markdown: how many generations of each setting are equal, and the differences."""
    lines = [
        "| setting | generations | equal | ties | other differences |",
        "|---|---|---|---|---|",
    ]
    for name, record in document(counts, found).items():
        lines.append(f"| {name} | " + " | ".join(map(str, record.values())) + " |")
    lines += [
        f"{one.setting}: step {one.step}, logits differ by {one.logits:.1e}: "
        + ("a tie" if one.tie else "NO TIE")
        for one in found
    ]
    return "\n".join(lines)


def document(counts: dict[str, int], found: list[Difference]) -> dict[str, dict[str, int]]:
    """The counts by setting."""

    def record(name: str) -> dict[str, int]:
        ties = sum(one.tie for one in found if one.setting == name)
        differences = sum(one.setting == name for one in found)
        return {
            "generations": counts[name],
            "equal": counts[name] - differences,
            "ties": ties,
            "others": differences - ties,
        }

    return {name: record(name) for name in counts}


class Fixed(nn.Module):
    """In the place of audiocraft's conditioners: given conditions, and zeros for their null."""

    def __init__(self) -> None:
        super().__init__()
        self.both = torch.zeros(2, 1, DIM)

    def tokenize(self, attributes: list[Any]) -> list[Any]:
        return attributes

    def forward(self, attributes: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Conditions [2, L, dim] and their mask."""
        return {"description": (self.both, torch.ones_like(self.both[..., 0]))}


class System:
    """One random decoder, as audiocraft's model and in an engine."""

    def __init__(self, cross: bool, n_q: int, half: int) -> None:
        self.config = LMConfig(
            dim=DIM,
            num_heads=HEADS,
            num_layers=LAYERS,
            ffn_dim=4 * DIM,
            n_q=n_q,
            card=CARD,
            delays=DELAYS[n_q],
            cross_attention=cross,
        )
        self.oracle = oracle(self.config, seed=n_q + cross, half=bool(half))
        self.lm = LM.from_audiocraft(
            self.config, self.oracle.state_dict(), device="cpu", dtype=torch.float32
        )
        self.engine = Engine(self.lm, max_length=MAX_FRAMES, stride=MAX_FRAMES // 2, slots=1)

    @torch.no_grad()
    def compare(self, setting: str, choice: random.Random) -> Iterator[Difference]:
        """Decode one random clip with both; yields the first difference, if there is one."""
        length = choice.randint(10, MAX_FRAMES)
        prompt = choice.choice([0, choice.randint(1, length - 1)])
        numbers = torch.Generator().manual_seed(choice.getrandbits(32))
        condition = torch.randn(choice.randint(1, 20), DIM, generator=numbers)
        both = torch.stack([condition, torch.zeros_like(condition)])
        codes = torch.randint(CARD, (self.config.n_q, prompt), generator=numbers)
        given = Conditions(cross=both) if self.config.cross_attention else Conditions(prefix=both)
        clip = Clip(
            length,
            choice.getrandbits(32),
            SETTINGS[setting],
            [given],
            codes if prompt else None,
        )
        [ours] = self.engine.generate([clip])
        theirs = self.audiocraft(clip)
        sequences = [interleave(c, self.config.delays, CARD) for c in (ours, theirs)]
        columns = (sequences[0] != sequences[1]).any(0).nonzero().flatten().tolist()
        if columns:
            yield self.explain(setting, clip, columns[0], *sequences)

    def audiocraft(self, clip: Clip) -> Tensor:
        """audiocraft's codes [K, length]."""
        from musicgen.rendering.audiocraft import ConditioningAttributes

        conditions = clip.conditions[0].given
        assert conditions is not None
        self.oracle.condition_provider.both = conditions
        torch.manual_seed(clip.seed)
        sampling = clip.sampling
        codes: Tensor = self.oracle.generate(
            None if clip.prompt_codes is None else clip.prompt_codes[None],
            [ConditioningAttributes(text={"description": "any"})],
            max_gen_len=clip.length,
            use_sampling=True,
            temp=sampling.temperature,
            top_k=min(sampling.top_k, CARD),
            top_p=sampling.top_p,
            cfg_coef=sampling.cfg_coef,
        )[0]
        return codes

    def explain(
        self, setting: str, clip: Clip, column: int, ours: Tensor, theirs: Tensor
    ) -> Difference:
        """Whether both codes of a column follow from logits that are equal but for rounding."""
        logits = [
            self.our_logits(clip, ours[:, :column]),
            self.oracle(
                theirs[None, :, :column].expand(2, -1, -1), [], self.oracle.condition_provider([])
            )[:, :, -1],
        ]
        first = clip.prompt_length + 1  # column that the first step decodes
        generator = torch.Generator().manual_seed(clip.seed)
        noise = torch.empty(1, self.config.n_q, CARD)
        for _ in range(first, column + 1):
            noise.exponential_(generator=generator)
        rows = SamplingRows.empty(1, torch.device("cpu"))
        rows.set(0, clip.sampling, CARD)
        follows = True
        for given, sequence in zip(logits, (ours, theirs), strict=True):
            drawn, taken = sample_each(given, noise, rows)[0], sequence[:, column]
            follows &= bool(((drawn == taken) | (taken == CARD)).all())
        difference = (logits[0] - logits[1]).abs().max().item()
        return Difference(setting, column, difference, follows and difference <= TOLERANCE)

    def our_logits(self, clip: Clip, sequence: Tensor) -> Tensor:
        """The engine's logits [2, K, card] after a sequence [K, S]."""
        given, last = clip.conditions[0], sequence.shape[1] - 1
        before = 0 if given.prefix is None else given.prefix.shape[1]
        cache = Cache.empty(self.lm, 2, before + last + 1, MAX_FRAMES)
        for _ in self.lm.prefill(sequence[:, :last].T, given.prefix, given.cross, cache):
            pass
        x = self.lm.embed(sequence[:, last]) + self.lm.positions(before + last + 1)[-1]
        assert self.lm.team
        ops = kernels.cpu_ops(self.lm.team)
        positions = torch.full((2,), before + last)
        return self.lm.step(x.expand(2, -1), torch.arange(2), positions, cache, ops)


def oracle(config: LMConfig, seed: int, half: bool) -> Any:
    """audiocraft's LMModel with random weights and logits that are not flat."""
    from musicgen.rendering.audiocraft import ConditionFuser, DelayedPatternProvider, LMModel

    torch.manual_seed(seed)
    fuse: dict[str, list[str]] = {"sum": [], "cross": [], "prepend": [], "input_interpolate": []}
    fuse["cross" if config.cross_attention else "prepend"].append("description")
    lm = LMModel(
        DelayedPatternProvider(config.n_q, delays=list(config.delays)),
        Fixed(),
        ConditionFuser(fuse),
        n_q=config.n_q,
        card=config.card,
        dim=config.dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        hidden_scale=config.ffn_dim // config.dim,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        activation="gelu",
        causal=True,
        custom=False,
        memory_efficient=True,
        cross_attention=config.cross_attention,
    )
    lm = lm.eval().requires_grad_(False)
    for name, weight in lm.named_parameters():
        if weight.dim() == 2 and not name.startswith("emb."):
            weight.mul_(3.0)
        if half:
            weight.copy_(weight.half().float())
    return lm
