"""Text prompt -> T5's tokens, by the tokenizer in the text encoder's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from musicgen.checkpoints.reading import damage_reported, find, read_json
from musicgen.conditioning.normalization import check_sentencepiece, check_tokenizers
from musicgen.errors import WeightsError

SENTENCEPIECE_FILE = "spiece.model"
TOKENIZERS_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of `size` tokens; calling it with a text gives its tokens."""

    size: int
    tokenize: Callable[[str], list[int]]

    def __call__(self, text: str) -> list[int]:
        return self.tokenize(text)


def open_tokenizer(folder: Path) -> Tokenizer:
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


def _open_sentencepiece(path: Path) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        data = path.read_bytes()
        check_sentencepiece(data)
        processor = SentencePieceProcessor(model_proto=data)
    except Exception as exc:  # the library raises no more specific type
        raise WeightsError(f"{path} is not a sentencepiece model ({exc}); fetch it again.") from exc
    end = processor.eos_id()
    return Tokenizer(processor.get_piece_size(), lambda text: [*processor.encode(text), end])


def _open_tokenizers(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Library

    document = read_json(path)
    try:
        check_tokenizers(document)
        library = Library.from_file(str(path))
    except Exception as exc:  # the library raises no more specific type
        raise WeightsError(f"{path} is not a tokenizer of T5 ({exc}); fetch it again.") from exc
    size = library.get_vocab_size(with_added_tokens=True)
    return Tokenizer(size, lambda text: list(library.encode(text).ids))
