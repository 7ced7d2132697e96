"""Checks of a tokenizer's file before its library opens it.

The libraries trust their files. One that asks for more memory than there is, or points outside of
its own tables, ends the process: at once, or at the first prompt that reaches the place.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MAX_REPLACEMENT = 64  # bytes; the longest of NFKC has 33
MAX_TOKENS = 512  # to which prompts may be padded or truncated
# Kinds of normalizers and pre-tokenizers that T5's files have: none can make a text much longer.
NORMALIZERS = {"Lowercase", "NFC", "NFKC", "Nmt", "Precompiled", "Replace", "Sequence", "Strip"}
PRE_TOKENIZERS = {"Metaspace", "Sequence", "Split", "Whitespace", "WhitespaceSplit"}
MODELS = {"Unigram", "WordLevel"}  # of T5's tokenizers and of the demo's
SPACES = {"Regex": " {2,}"}  # the only pattern that is replaced
# Fields of sentencepiece's protocol buffers: ModelProto.normalizer_spec, its precompiled_charsmap.
NORMALIZER_FIELD, CHARSMAP_FIELD = 3, 2


def check_tokenizers(document: Mapping[str, Any]) -> None:
    """Raise ValueError for a tokenizer.json that is not of T5's kind."""
    kind = (document.get("model") or {}).get("type")
    if kind not in MODELS:
        raise ValueError(f"its model is {kind}, not one of {', '.join(sorted(MODELS))}")
    for part in _parts(document.get("normalizer"), "normalizers"):
        _check_kind(part, NORMALIZERS)
        if part["type"] == "Precompiled":
            check_charsmap(_charsmap_bytes(part["precompiled_charsmap"]))
        replaces = part["type"] == "Replace"
        if replaces and (part.get("pattern") != SPACES or len(part.get("content", "")) > 1):
            raise ValueError(f"it replaces {part.get('pattern')!r}")
    for part in _parts(document.get("pre_tokenizer"), "pretokenizers"):
        _check_kind(part, PRE_TOKENIZERS)
        if part["type"] == "Split":
            _check_regex(part["pattern"].get("Regex", ""))
    padding = document.get("padding") or {}
    lengths = [padding.get("pad_to_multiple_of") or 0, *_fixed(padding.get("strategy"))]
    if any(length > MAX_TOKENS for length in lengths):
        raise ValueError(f"it pads prompts to {max(lengths)} tokens")


def check_sentencepiece(data: bytes) -> None:
    """Raise ValueError for a spiece.model that is empty, or whose normalization is damaged."""
    if not data:
        raise ValueError("it is empty")
    for specification in _fields(data, NORMALIZER_FIELD):
        for charsmap in _fields(specification, CHARSMAP_FIELD):
            check_charsmap(charsmap)


def check_charsmap(data: bytes) -> None:
    """Raise ValueError unless `data` is a valid table of replacements.

    It is the size of a trie, the trie (a double array of Darts-clone, units of 32 bits), and the
    replacements, each ended by a zero. A leaf of the trie is the position of a replacement.
    """
    if not data:
        return
    size = int.from_bytes(data[:4], "little")
    if size % 4 or not 0 < size <= len(data) - 4:
        raise ValueError("the trie of its normalization has a wrong size")
    units = np.frombuffer(data, "<u4", size // 4, offset=4)
    replacements = data[4 + size :]
    leaves = units >> 31 == 1
    if (units[leaves] & 0x7FFFFFFF).max(initial=0) >= max(1, len(replacements)):
        raise ValueError("the trie of its normalization points outside of the replacements")
    nodes = np.flatnonzero(~leaves)
    offsets = (units[nodes] >> 10) << ((units[nodes] & 0x200) >> 6)
    if ((nodes ^ offsets) | 0xFF).max(initial=0) >= len(units):
        raise ValueError("the trie of its normalization points outside of itself")
    if replacements and replacements[-1] != 0:
        raise ValueError("the replacements of its normalization are cut off")
    if max(map(len, replacements.split(b"\0"))) > MAX_REPLACEMENT:
        raise ValueError(f"its normalization has a replacement of over {MAX_REPLACEMENT} bytes")


def _parts(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """A component of a tokenizer and those that it consists of."""
    if part is not None:
        yield part
        for inner in part.get(key, ()):
            yield from _parts(inner, key)


def _check_kind(part: Mapping[str, Any], kinds: set[str]) -> None:
    if part.get("type") not in kinds:
        raise ValueError(f"it has a {part.get('type')}, which T5's tokenizers do not have")


def _check_regex(pattern: str) -> None:
    """Raise ValueError for a pattern whose search could take exponential time."""
    repeats = (len(re.findall(r"[+*{]", option)) for option in pattern.split("|"))
    if re.search(r"[()\\]", pattern) or any(count > 1 for count in repeats):
        raise ValueError(f"it splits at {pattern!r}, which may take too long")


def _fixed(strategy: Any) -> list[int]:
    """The length of padding of the strategy {"Fixed": length}."""
    return [strategy["Fixed"]] if isinstance(strategy, dict) and "Fixed" in strategy else []


def _charsmap_bytes(value: Any) -> bytes:
    """The table, which a tokenizer.json has as base64 or as a list of bytes."""
    return base64.b64decode(value) if isinstance(value, str) else bytes(value or b"")


def _fields(data: bytes, number: int) -> Iterator[bytes]:
    """Every value of the length-delimited field `number` of a protocol buffer."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(data, position)
            if tag >> 3 == number:
                yield data[position : position + length]
            position += length
        else:
            raise ValueError("it is not a protocol buffer")
    if position > len(data):
        raise ValueError("it is cut off")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("it is not a protocol buffer")
