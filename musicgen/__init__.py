"""MusicGen inference: text, melodies and audio to continue in, normalized audio files out.

    from musicgen import MusicGen, Request, save

    model = MusicGen.load("weights/demo")
    generation = model.generate(Request(prompt="soul, rhodes, F minor, 90 bpm", duration=4, seed=7))
    save(generation, "soul.mp3")

`MusicGen.stream` gives the clip in pieces while it is made.

Everything in `__all__` is public and stable; other modules may change between versions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from musicgen.errors import (
    DecodeError,
    InputError,
    MusicGenError,
    OutputError,
    UploadError,
    WeightsError,
)

if TYPE_CHECKING:
    from musicgen.generation import Generation
    from musicgen.output import save
    from musicgen.pipeline import MusicGen
    from musicgen.request import Request
    from musicgen.streaming import Piece, Stream

__version__ = "0.2.0"

__all__ = [
    "DecodeError",
    "Generation",
    "InputError",
    "MusicGen",
    "MusicGenError",
    "OutputError",
    "Piece",
    "Request",
    "Stream",
    "UploadError",
    "WeightsError",
    "__version__",
    "save",
]

# Imported on first use: they import torch, which a command that only talks to a server must not.
_LAZY = {
    "Generation": "generation",
    "MusicGen": "pipeline",
    "Piece": "streaming",
    "Request": "request",
    "Stream": "streaming",
    "save": "output",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"musicgen.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
