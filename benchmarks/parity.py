"""How often the engine's codes are audiocraft's: random generations on small random decoders.

Both draw the same noise, so codes differ only where rounding decides between two of them. Each
difference is explained: after the same codes the logits of both are compared. If they agree to
TOLERANCE, and each code follows from its own logits, it was a tie; anything else is an error.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.audiocraft_lm import FixedConditions, audiocraft_lm
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

    step: int
    logits: float  # the largest difference between the logits there
    tie: bool


@dataclass(frozen=True)
class Outcome:
    """One generation, by what the tables count, and its difference if there is one."""

    setting: str
    decoder: str
    mode: str
    difference: Difference | None


def main(generations: int, seed: int) -> None:
    """Print tables, then one line of JSON; exit 1 for an unexplained difference."""
    systems = [
        System(cross, n_q, half) for cross in (True, False) for n_q in (4, 8) for half in (0, 1)
    ]
    choice = random.Random(seed)
    names = list(SETTINGS)
    outcomes = [
        choice.choice(systems).compare(names[index % len(names)], choice)
        for index in tqdm(range(generations), mininterval=10.0)
    ]
    print(table(outcomes))
    print(json.dumps(document(outcomes)))
    if not all(one.difference is None or one.difference.tie for one in outcomes):
        raise SystemExit(1)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: how many generations are equal, by setting, decoder and mode; the differences."""
    lines = [
        "| | generations | equal | ties | other differences |",
        "|---|---|---|---|---|",
    ]
    for counted in document(outcomes).values():
        for name, record in counted.items():
            lines.append(f"| {name} | " + " | ".join(map(str, record.values())) + " |")
    lines.append("")
    for one in outcomes:
        if one.difference:
            lines.append(
                f"{one.setting}, {one.decoder}, {one.mode}: step {one.difference.step}, logits "
                f"differ by {one.difference.logits:.1e}: "
                + ("a tie" if one.difference.tie else "NO TIE")
            )
    return "\n".join(lines)


def document(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, int]]]:
    """The counts of all generations, by setting, by decoder and by mode."""

    def record(chosen: list[Outcome]) -> dict[str, int]:
        differences = [one.difference for one in chosen if one.difference]
        ties = sum(one.tie for one in differences)
        return {
            "generations": len(chosen),
            "equal": len(chosen) - len(differences),
            "ties": ties,
            "others": len(differences) - ties,
        }

    found = {"all": {"all": record(list(outcomes))}}
    for by in ("setting", "decoder", "mode"):
        names = (
            list(SETTINGS) if by == "setting" else sorted({getattr(one, by) for one in outcomes})
        )
        found[by] = {
            name: record([one for one in outcomes if getattr(one, by) == name]) for name in names
        }
    return found


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
        self.name = (
            f"{'cross-attention' if cross else 'prepended conditions'}, {n_q} codebooks, "
            f"{'float16' if half else 'float32'} weights"
        )
        self.oracle = oracle(self.config, seed=n_q + cross, half=bool(half))
        self.lm = LM.from_audiocraft(
            self.config, self.oracle.state_dict(), device="cpu", dtype=torch.float32
        )
        self.engine = Engine(self.lm, max_length=MAX_FRAMES, stride=MAX_FRAMES // 2, slots=1)

    @torch.no_grad()
    def compare(self, setting: str, choice: random.Random) -> Outcome:
        """Decode one random clip with both, and compare their codes."""
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
        difference = self.explain(clip, columns[0], *sequences) if columns else None
        mode = "a continuation" if prompt else "without an audio prompt"
        return Outcome(setting, self.name, mode, difference)

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

    def explain(self, clip: Clip, column: int, ours: Tensor, theirs: Tensor) -> Difference:
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
        return Difference(column, difference, follows and difference <= TOLERANCE)

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
    torch.manual_seed(seed)
    lm = audiocraft_lm(config, FixedConditions(torch.zeros(2, 1, config.dim)))
    for name, weight in lm.named_parameters():
        if weight.dim() == 2 and not name.startswith("emb."):
            weight.mul_(3.0)
        if half:
            weight.copy_(weight.half().float())
    return lm
