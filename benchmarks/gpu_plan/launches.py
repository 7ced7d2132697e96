"""Records the launches of one decode step of a published decoder, without a GPU or its weights."""

import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_plan.recorder import Launch, recorded
from benchmarks.work import FRAME_RATE, MAX_SECONDS
from musicgen.decoder import kernels
from musicgen.decoder.decode_steps import slot_columns
from musicgen.decoder.lm import LM
from musicgen.decoder.state import State, decode_step
from musicgen.decoder.weights import LMConfig, decoder_shapes

PREFIX = 256  # positions of conditions in each slot
CUDA = torch.device("cuda", 0)


def step_launches(config: LMConfig, clips: int, capability: int) -> list[Launch]:
    """Returns the launches of a decode step with `clips` clips on a GPU (90: Hopper)."""
    lm = _decoder(config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        lm = lm.to_empty(device=CUDA)
        lm.device, lm.offsets = CUDA, torch.empty_like(lm.offsets, device=CUDA)
        columns = slot_columns(lm, round(MAX_SECONDS * FRAME_RATE))
        state = State.empty(lm, clips, columns, PREFIX, shared=not config.cross_attention)
        rows = torch.zeros(clips, dtype=torch.int64, device=CUDA)
        ops = kernels.triton_ops(divmod(capability, 10))
        with recorded(capability) as launches, warnings.catch_warnings():
            # The step's key for recordings, which the GPU's operations do not use.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            decode_step(lm, ops, state, rows)
    return launches


def _decoder(config: LMConfig) -> LM:
    """Returns a float16 decoder on the meta device, which takes no memory."""
    shapes = decoder_shapes(config)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return LM.from_audiocraft(config, state, device="meta", dtype=torch.float16)
