"""Text prompt -> T5's tokens, by the tokenizer in the text encoder's folder."""

from collections.abc import Callable
from pathlib import Path

from musicgen.checkpoints.reading import damage_reported, find
from musicgen.errors import WeightsError

SENTENCEPIECE_FILE = "spiece.model"
TOKENIZERS_FILE = "tokenizer.json"

Tokenize = Callable[[str], list[int]]


def open_tokenizer(folder: Path) -> Tokenize:
    """The tokenizer of the T5 in `folder`: a text prompt -> its tokens, end of sentence last.

    `spiece.model` is preferred: MusicGen was trained on sentencepiece's tokens. The hub's
    `tokenizer.json` normalizes by grapheme, not by character. It splits some syllables of Hangul,
    drops some combining marks and reads a few control characters as spaces. The tests compare both
    by alphabet. sentencepiece reads a typed `</s>` as text.
    """
    sentencepiece = folder / SENTENCEPIECE_FILE
    if sentencepiece.is_file():
        return _open_sentencepiece(sentencepiece)
    path = find(folder, TOKENIZERS_FILE)
    with damage_reported(path):
        return _open_tokenizers(path)


def _open_sentencepiece(path: Path) -> Tokenize:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as exc:
        raise WeightsError(f"{path} is not a sentencepiece model ({exc}); fetch it again.") from exc
    end = processor.eos_id()
    return lambda prompt: [*processor.encode(prompt), end]


def _open_tokenizers(path: Path) -> Tokenize:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises no more specific type
        raise WeightsError(f"{path} is not a tokenizer ({exc}); fetch it again.") from exc
    return lambda prompt: list(tokenizer.encode(prompt).ids)
