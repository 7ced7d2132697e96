"""Prints a hash of what each operation of the CPU computes, for test_cpu.py."""

import hashlib
import json

import torch
from torch import nn

from musicgen.decoder import kernels
from musicgen.decoder.kernels.program import Then

torch.manual_seed(0)
team = kernels.cpu_team(1)
found = {}


def note(name, function, *inputs):
    result = kernels.cpu_ops(team).replay(function, inputs)
    found[name] = hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()


half, x = torch.randn(200, 300).half().float(), torch.randn(5, 300)
norm = nn.LayerNorm(300).requires_grad_(False)
norm.weight.add_(0.1 * torch.randn(300))
weights = {
    "float32": kernels.pack(torch.randn(200, 300), team),
    "float16": kernels.pack(half, team),
    "int8": kernels.quantize(half, team),
}
for name, weight in weights.items():
    note(f"product {name}", lambda ops, x, w=weight: ops.linear(x, w), x)
    note(f"gelu {name}", lambda ops, x, w=weight: ops.linear(x, w, Then.GELU), x / 20)
    note(f"norm {name}", lambda ops, x, w=weight: ops.norm_linear(x, norm, w), x)
queries, rows, lengths = (
    torch.randn(4, 64),
    torch.tensor([5, 4, 0, 1]),
    torch.tensor([50, 49, 3, 9]),
)
caches = torch.randn(2, 6, 4, 50, 16)
for kept in (caches, caches.half()):
    note(
        f"attention {kept.dtype}",
        lambda ops, q, r, n, kept=kept: ops.attention(q, *kept, r, n),
        *(queries, rows, lengths),
    )
print(json.dumps(found))
