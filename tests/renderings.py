"""Eight requests at once, two of them with diffusion. reliability/test_rendering_memory.py runs it.

Arguments: the checkpoint folder, the seconds of each clip, and `--unbounded` to do it once more
with the budget lifted.

Prints for each time a line of bytes as JSON: the budget, which is what one diffusion needs; the
most that open renderings held while one of them yielded the device; and the most that existed at
any time, with the activations of the network that was running.
"""

import json
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import torch
from gate import until
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicgen import MusicGen, Request
from musicgen.rendering import diffusion
from musicgen.rendering.demand import DIFFUSION
from musicgen.runtime.budget import Budget

REQUESTS, DIFFUSIONS = 8, 2


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that were made in the thread that entered it, and still exist."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.remove(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def remove(self, key, size):
        del self.storages[key]
        self.now -= size


class Requests:
    """Renders all clips while the first diffusion has tensors and yields the device."""

    def __init__(self, model, seconds):
        self.model = model
        self.requests = [
            Request(prompt="", duration=seconds, seed=i, multi_band_diffusion=i < DIFFUSIONS)
            for i in range(REQUESTS)
        ]
        self.decoded, self.begun = threading.Barrier(REQUESTS), threading.Event()
        self.render, model.renderers.render = model.renderers.render, self.render_together
        self.live, self.held = LiveTensors(), 0
        # Before each of these calls, a rendering yields.
        for module in [model.renderers.diffusion.bands[0].model, *model.codec.pieces]:
            module.register_forward_pre_hook(self.look)

    def render_together(self, codes, seeds, by_diffusion):
        """The clips' wavs, rendered when all are decoded; a diffusion first."""
        self.decoded.wait()
        if seeds != [0]:
            self.begun.wait()
        return self.render(codes, seeds, by_diffusion)

    def look(self, module, _):
        """Count what is held; the first diffusion waits here for the others to be in a queue."""
        self.held = max(self.held, self.live.now)
        if module is self.model.renderers.diffusion.bands[0].model and not self.begun.is_set():
            self.begun.set()
            queues = self.model.renderers.budget._queue, self.model.device_thread._waiting
            until(lambda: sum(map(len, queues)) == REQUESTS - 1)

    def run(self):
        # In the device's thread, where all tensors of renderings are made.
        self.model.device_thread.run(self.live.__enter__)
        with ThreadPoolExecutor(REQUESTS) as pool:
            # Finished clips are dropped: they are no part of a rendering.
            for result in [pool.submit(self.generate, request) for request in self.requests]:
                result.result()
        # A thread that ends with a mode needs the interpreter, which may have ended before.
        self.model.device_thread.run(lambda: self.live.__exit__(None, None, None))

    def generate(self, request):
        assert self.model.generate(request).wavs


def main(folder, seconds, unbounded=""):
    torch.set_num_threads(1)
    # Two steps back along the chain of one band hold the same tensors as twenty of each of four.
    diffusion.STEPS = [999, 499, 0]
    for lifted in [False, True] if unbounded else [False]:
        print(json.dumps(measured(folder, float(seconds), lifted)))


def measured(folder, seconds, lifted):
    """The budget, and what the renderings held and needed."""
    model = MusicGen.load(folder, "cpu")
    del model.renderers.diffusion.bands[1:]
    requests = Requests(model, seconds)
    frames = requests.requests[0].frames(model.codec.frame_rate)
    budget = model.renderers.memory(frames, DIFFUSION)
    model.renderers.budget = Budget(2**40 if lifted else budget)
    requests.run()
    return {"budget": budget, "held": requests.held, "peak": requests.live.peak}


if __name__ == "__main__":
    main(*sys.argv[1:])
