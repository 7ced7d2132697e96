"""A stand-in for CUDA graphs on the CPU: records a function's operations and repeats them.

Like a CUDA graph it repeats only the operations on tensors: the host's choices and the numbers it
read during the capture stay the same. Operations that a graph cannot or must not hold raise Unsafe.
"""

import gc
import weakref

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from musicgen.decoder.graph import WARM_UPS, Graphed

# Calls that copy numbers from the device to the host, for which the host has to wait.
WAITING_CALLS = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique", "equal"),
    *("__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"),
}
WAITING_OPS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
FROM_HOST = {"lift_fresh"}  # called for a tensor that is made from Python numbers


class Unsafe(Exception):  # noqa: N818 - the name describes a step
    """The step cannot be captured, or the GPU would have to wait in it."""


def storages(values):
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if is_tensor(leaf)}


def is_tensor(value):
    return isinstance(value, Tensor)


class NoWaiting(TorchFunctionMode):
    """Raises when a number is read on the host."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", None) in WAITING_CALLS:
            raise Unsafe(f"waits: {func.__name__}")
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Calls `seen(func, args, kwargs, result)` for every operation."""

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
    """A context in which an operation that allocates memory for its result raises."""

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
    """The tensor operations of `function`, which runs twice."""

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
    """Run `function`; raise if a tensor that it made survives, which a replay would overwrite."""
    made = []

    def see(func, args, kwargs, result):
        if storages(result) - storages((args, kwargs)):
            made.extend(weakref.ref(leaf) for leaf in tree_leaves(result) if is_tensor(leaf))

    with Operations(see):
        function()
    gc.collect()
    if any(reference() is not None for reference in made):
        raise Unsafe("keeps what it allocates")
