"""A CUDA graph on paper: what a function did once, done again with the same tensors and numbers.

Like a graph it knows nothing of the host's part of the function: what was chosen, read or looked up
while it was captured stays as it was. What a graph could not hold, or must not, raises.
"""

import gc
import weakref

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from musicgen.decoder.graph import WARM_UPS, Graphed

# What hands a device's numbers to the host, which has to wait for them.
WAITING_CALLS = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique", "equal"),
    *("__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"),
}
WAITING_OPS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
FROM_HOST = {"lift_fresh"}  # of a tensor made of Python's numbers


class Unsafe(Exception):  # noqa: N818 - named after what it says of a step
    """No graph could hold this, or a GPU would have to wait."""


def storages(values):
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if is_tensor(leaf)}


def is_tensor(value):
    return isinstance(value, Tensor)


class NoWaiting(TorchFunctionMode):
    """Whatever reads a number on the host raises."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) in WAITING_CALLS:
            raise Unsafe(f"waits: {func.__name__}")
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Tells `seen(func, args, kwargs, result)` of every operation."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in WAITING_OPS:
            raise Unsafe(f"waits: {name}")
        result = func(*args, **kwargs)
        self.seen(func, args, kwargs, result)
        return result


def no_allocation():
    """Inside, an operation whose result is new memory raises."""

    def seen(func, args, kwargs, result):
        if not func.is_view and storages(result) - storages((args, kwargs)):
            raise Unsafe(f"allocates: {func}")

    return Operations(seen)


class PaperGraph(Graphed):
    """Graphed without a GPU."""

    def _capture(self):
        before = [tensor.clone() for tensor in self.changed]
        for _ in range(WARM_UPS):
            self.function()
        self._restore(before)
        capture = Capture(self.function)
        self._restore(before)
        return capture

    def _restore(self, values):
        for tensor, value in zip(self.changed, values, strict=True):
            tensor.copy_(value)


class Capture:
    """What `function` does to tensors; it runs twice."""

    def __init__(self, function):
        self.done = []
        leaves_nothing(function)
        with NoWaiting(), Operations(self.see):
            function()

    def see(self, func, args, kwargs, result):
        if func.overloadpacket.__name__ in FROM_HOST:
            raise Unsafe("copies from the host's memory")
        if not func.is_view:
            self.done.append((func, args, kwargs, result))

    def replay(self):
        with _disable_current_modes():
            for func, args, kwargs, result in self.done:
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if is_tensor(place) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


def leaves_nothing(function):
    """Run it; raises if a tensor that it made is still there: the next replay would write to it."""
    made = []

    def see(func, args, kwargs, result):
        if storages(result) - storages((args, kwargs)):
            made.extend(weakref.ref(leaf) for leaf in tree_leaves(result) if is_tensor(leaf))

    with Operations(see):
        function()
    gc.collect()
    if any(reference() is not None for reference in made):
        raise Unsafe("keeps what it allocates")
