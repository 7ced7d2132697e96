"""A prompt -> T5's tokens, with the file of the text encoder that says how."""

from collections.abc import Callable
from pathlib import Path

from musicgen.checkpoints.files import damage_reported, find
from musicgen.errors import WeightsError

SENTENCEPIECE_FILE = "spiece.model"
TOKENIZERS_FILE = "tokenizer.json"

Tokenize = Callable[[str], list[int]]


def open_tokenizer(folder: Path) -> Tokenize:
    """The tokenizer of a T5 in `folder`: a prompt -> its tokens, the end of sentence last.

    `spiece.model` comes first: MusicGen was trained on what sentencepiece reads. The hub's
    `tokenizer.json` normalizes by grapheme, not by character, so that it splits some syllables of
    Hangul, drops some combining marks and takes a few control characters for spaces. The tests
    compare the two alphabet by alphabet. A `</s>` that somebody types is text to sentencepiece.
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
        raise WeightsError(f"{path} is no sentencepiece model ({exc}); fetch it again.") from exc
    end = processor.eos_id()
    return lambda prompt: [*processor.encode(prompt), end]


def _open_tokenizers(path: Path) -> Tokenize:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing more exact
        raise WeightsError(f"{path} is no tokenizer ({exc}); fetch it again.") from exc
    return lambda prompt: list(tokenizer.encode(prompt).ids)
