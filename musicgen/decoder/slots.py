"""How many clips a decoder can decode at once in the memory that is free."""

from musicgen.decoder.decode_steps import BATCHES, slot_columns
from musicgen.decoder.lm import LM
from musicgen.decoder.sampling import ROWS_PER_CLIP
from musicgen.decoder.state import State

# The share of the free memory that the slots may take. The rest is for separation, rendering and
# diffusion, and for other processes.
SLOTS_SHARE = 0.6


def slots_that_fit(lm: LM, free: float, max_length: int, prefix: int, shared: bool = False) -> int:
    """The largest batch or, if `free` bytes are too few for it, as many clips as fit.

    A slot has ROWS_PER_CLIP rows of keys and values; a shared prefix takes one more row in all.
    """
    row = State.slot_bytes(lm, slot_columns(lm, max_length), prefix) / ROWS_PER_CLIP
    rows = int(SLOTS_SHARE * free / row) - shared
    return max(1, min(BATCHES[-1], rows // ROWS_PER_CLIP))
