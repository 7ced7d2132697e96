"""What the fast mode changes: its next-code distributions, compared with those of the exact mode.

Both decoders get the same codes before each step (teacher forcing), so one step's difference does
not lead to others. The distributions are those that are sampled from: with guidance, at temperature
1, before top-k. With the demo the codes are clips of the exact mode; with random weights of a
published shape they are random.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.audiocraft_lm import GUIDANCE
from benchmarks.work import CONFIGS, FRAME_RATE, TEXT, random_state_dict
from musicgen.checkpoints import folders
from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.decoder import kernels
from musicgen.decoder.clip import Clip, Conditions
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.pattern import interleave
from musicgen.decoder.sampling import ROWS_PER_CLIP, Sampling, guide
from musicgen.pipeline import MusicGen

CPU = torch.device("cpu")
PROMPTS = (
    "lofi chill, warm piano, C minor, 80 bpm",
    "trap, dark bells, D minor, 140 bpm",
    "soul, rhodes, F minor, 90 bpm",
    "string quartet, A major, 100 bpm",
    "house, bright synth, G minor, 124 bpm",
    "ambient, soft pad, E major, 70 bpm",
)
RANDOM_MODEL, RANDOM_CLIPS, RANDOM_SECONDS = "small", 2, 4
RANDOM_STD = 2.0  # of the logits: random weights alone would give flat distributions

Record = dict[str, Any]


@dataclass(frozen=True)
class Sequences:
    """Clips of the same length, in the delay pattern: codes [B, K, S], and their conditions."""

    codes: Tensor
    conditions: Sequence[Conditions]


def main() -> None:
    """Print a table for the demo and one for random weights, then one line of JSON."""
    documents = []
    for run in (demo, random_weights):
        documents.append(run())
        print(table(documents[-1]) + "\n", flush=True)
    print(json.dumps(documents))


def demo() -> Record:
    """Returns the figures of the demo model, on one clip for each of PROMPTS."""
    model = MusicGen.load(folders.DEFAULT, "cpu", precision="exact")
    length = int(model.max_duration * FRAME_RATE)
    conditions = [model.conditioner(prompt, None, [0.0]) for prompt in PROMPTS]
    jobs = [
        model.loop.submit(Clip(length, seed, Sampling(cfg_coef=GUIDANCE), windows))
        for seed, windows in enumerate(conditions)
    ]
    config = model.engine.lm.config
    codes = [interleave(job.result(), config.delays, config.special_token_id) for job in jobs]
    # Without the shared prefix: a cache of its own starts empty.
    given = [Conditions(one.prefix, one.cross) for [one] in conditions]
    fast = open_checkpoint(folders.DEFAULT).load_lm(CPU, torch.float32, fast=True)
    lms = {"exact": model.engine.lm, "fast": fast}
    return compare("demo", lms, Sequences(torch.stack(codes), given))


def random_weights(
    name: str = RANDOM_MODEL, clips: int = RANDOM_CLIPS, seconds: float = RANDOM_SECONDS
) -> Record:
    """Returns the figures of a decoder of a published shape with random weights."""
    config = CONFIGS[name]
    state = random_state_dict(config)
    # LayerNorm gives numbers of standard deviation 1, the heads are the last matrix.
    heads = [key for key in state if key.startswith("linears.")]
    gain = RANDOM_STD / (state[heads[0]].float().std().item() * config.dim**0.5)
    state |= {key: state[key] * gain for key in heads}
    random = torch.Generator().manual_seed(0)
    codes = [
        torch.randint(config.card, (config.n_q, round(seconds * FRAME_RATE)), generator=random)
        for _ in range(clips)
    ]
    given = []
    for _ in range(clips):
        condition = torch.randn(TEXT, config.dim, generator=random)
        both = torch.stack([condition, torch.zeros_like(condition)])
        given.append(Conditions(cross=both) if config.cross_attention else Conditions(prefix=both))
    lms = {
        mode: LM.from_audiocraft(
            config,
            state,
            device=CPU,
            dtype=torch.float32,
            threads=torch.get_num_threads(),
            fast=mode == "fast",
        )
        for mode in ("exact", "fast")
    }
    sequences = [interleave(one, config.delays, config.special_token_id) for one in codes]
    return compare(f"random weights, {name}", lms, Sequences(torch.stack(sequences), given))


@torch.no_grad()
def compare(name: str, lms: Mapping[str, LM], given: Sequences) -> Record:
    """Returns KL divergence and top-1 agreement of fast against exact, by codebook."""
    config = lms["exact"].config
    exact, fast = (guided_logits(lms[mode], given).double() for mode in ("exact", "fast"))
    # Step s is about column s + 1, where some codebooks have no codes.
    known = given.codes[:, :, 1:].permute(2, 0, 1) != config.special_token_id
    log_exact, log_fast = exact.log_softmax(-1), fast.log_softmax(-1)
    divergence = (log_exact.exp() * (log_exact - log_fast)).sum(-1)
    agree = (exact.argmax(-1) == fast.argmax(-1)).double()

    def by_codebook(values: Tensor) -> list[float]:
        return [values[:, :, k][known[:, :, k]].mean().item() for k in range(config.n_q)]

    return {
        "name": name,
        "clips": len(given.codes),
        "steps": len(exact),
        "kl": divergence[known].mean().item(),
        "top1": agree[known].mean().item(),
        "kl_by_codebook": by_codebook(divergence),
        "top1_by_codebook": by_codebook(agree),
    }


def guided_logits(lm: LM, given: Sequences) -> Tensor:
    """The guided logits [S - 1, B, K, card] of each column after the first, all clips together."""
    clips, _, columns = given.codes.shape
    prefixes = [0 if one.prefix is None else one.prefix.shape[1] for one in given.conditions]
    crosses = [0 if one.cross is None else one.cross.shape[1] for one in given.conditions]
    rows = torch.arange(ROWS_PER_CLIP * clips)
    cache = Cache.empty(lm, len(rows), max(prefixes) + columns, max(crosses))
    for index, one in enumerate(given.conditions):
        first = ROWS_PER_CLIP * index
        own = cache.rows(slice(first, first + ROWS_PER_CLIP))
        for _ in lm.prefill(given.codes[index, :, :0].T, one.prefix, one.cross, own):
            pass
    assert lm.team
    ops = kernels.cpu_ops(lm.team)
    table = lm.positions(max(prefixes) + columns)
    before = torch.tensor(prefixes)
    coefficient = torch.full((clips, 1, 1), GUIDANCE)
    logits = []
    for column in range(columns - 1):
        x = lm.embed(given.codes[:, :, column]) + table[before + column]
        x, positions = (
            tensor.repeat_interleave(ROWS_PER_CLIP, 0) for tensor in (x, before + column)
        )
        logits.append(guide(lm.step(x, rows, positions, cache, ops), coefficient))
    return torch.stack(logits)


def table(document: Record) -> str:
    """Returns a Markdown table of the codebooks and their mean."""
    lines = [
        f"{document['name']}: fast against exact, teacher-forced, guidance {GUIDANCE:g}, "
        f"{document['clips']} clips, {document['steps']} steps",
        "",
        "| codebook | KL, nats | top-1 equal |",
        "|---|---|---|",
    ]
    rows = zip(document["kl_by_codebook"], document["top1_by_codebook"], strict=True)
    named = [
        *((str(k), *row) for k, row in enumerate(rows)),
        ("all", document["kl"], document["top1"]),
    ]
    lines += [f"| {name} | {kl:.1e} | {100 * top1:.1f}% |" for name, kl, top1 in named]
    return "\n".join(lines)
