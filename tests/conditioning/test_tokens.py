"""Tokens of a prompt by spiece.model, as transformers reads it, and by the hub's tokenizer.json."""

import io
import random
import shutil

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import T5Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from musicgen.conditioning import normalization
from musicgen.conditioning.tokens import SENTENCEPIECE_FILE, TOKENIZERS_FILE, open_tokenizer
from musicgen.errors import WeightsError

MUSIC = "lofi chill warm piano slow 808 drums, bpm guitar in c minor bass hip-hop jazz pad"
ALPHABETS = {
    "ascii": (0x20, 0x7E),
    "latin": (0xA0, 0x24F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5FF),
    "thai": (0xE00, 0xE7F),
    "han": (0x4E00, 0x4FFF),
    "hangul": (0xAC00, 0xADFF),
    "letterlike": (0x2100, 0x218F),
    "mathematical": (0x1D400, 0x1D4FF),
    "emoji": (0x1F300, 0x1F5FF),
}
# tokenizers normalizes these by grapheme and sentencepiece by character, or they split differently.
DISPUTED = {
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "jamo": (0x1100, 0x11FF),
    "kana": (0x3040, 0x30FF),
    "halfwidth": (0xFF00, 0xFFEF),
    "punctuation": (0x2000, 0x20CF),
    "control": (0x00, 0x9F),
}


def lines(first, last, count, seed=0):
    """Lines of five words, each of 1 to 8 characters of an alphabet."""
    rng = random.Random(seed)
    return [
        " ".join(
            "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8)))
            for _ in range(5)
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer trained like T5's (unigram, nmt_nfkc, the same special tokens)."""
    folder = tmp_path_factory.mktemp("spiece")
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(MUSIC.split(), k=8)) for _ in range(1000)]
    for first, last in (ALPHABETS | DISPUTED).values():
        corpus += [line.replace("\n", " ").replace("\0", "") for line in lines(first, last, 60, 1)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="unigram",
        vocab_size=4500,
        hard_vocab_limit=False,
        character_coverage=0.995,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def slow(folder):
    """transformers' sentencepiece tokenizer, which audiocraft used when MusicGen was trained."""
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    backend = SentencePieceBackend(vocab_file=str(folder / SENTENCEPIECE_FILE), **special)

    def tokenize(text):
        return [*backend.convert_tokens_to_ids(backend.tokenize(text)), backend.eos_token_id]

    return tokenize


@pytest.fixture(scope="module")
def hub(folder, tmp_path_factory):
    """The tokenizer.json that transformers creates from the same file, alone."""
    target = tmp_path_factory.mktemp("hub")
    T5Tokenizer.from_pretrained(folder).save_pretrained(target)
    assert not (target / SENTENCEPIECE_FILE).exists()
    return open_tokenizer(target)


@pytest.mark.parametrize("alphabet", sorted(ALPHABETS | DISPUTED))
def test_spiece_model_gives_the_tokens_of_the_slow_tokenizer(ours, slow, alphabet):
    for line in lines(*(ALPHABETS | DISPUTED)[alphabet], 300):
        assert ours(line) == slow(line), repr(line)


@pytest.mark.parametrize("alphabet", sorted(ALPHABETS))
def test_the_hubs_tokenizer_json_gives_the_same_tokens(ours, hub, alphabet):
    for line in lines(*ALPHABETS[alphabet], 300):
        assert hub(line) == ours(line), repr(line)


@pytest.mark.parametrize(
    "text", ["", " ", "  two   spaces ", "tab\tand\nline", "１２ｋＨｚ ﬁne", "a\0b"]
)
def test_unusual_spaces_and_character_forms_give_the_same_tokens(ours, slow, hub, text):
    assert ours(text) == slow(text) == hub(text)


def test_spiece_model_is_preferred_where_the_two_differ(folder, ours, hub, tmp_path):
    """A folder with both files gives the tokens that the model was trained with."""
    disputed = [line for block in DISPUTED.values() for line in lines(*block, 300)]
    different = [line for line in disputed if hub(line) != ours(line)]
    assert 0 < len(different) < len(disputed) / 5
    shutil.copytree(folder, tmp_path / "both")
    T5Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "both")
    assert (tmp_path / "both" / TOKENIZERS_FILE).exists()
    both = open_tokenizer(tmp_path / "both")
    assert [both(line) for line in different] == [ours(line) for line in different]


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: b"", lambda data: b"xx"])
def test_a_damaged_file_is_named(folder, tmp_path, damage):
    data = (folder / SENTENCEPIECE_FILE).read_bytes()
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(damage(data))
    with pytest.raises(WeightsError, match=r"spiece\.model is not a sentencepiece model"):
        open_tokenizer(tmp_path)


def charsmap(data):
    """The position and length of the normalization's table in a sentencepiece model."""
    [specification] = normalization._fields(data, normalization.NORMALIZER_FIELD)
    [table] = normalization._fields(specification, normalization.CHARSMAP_FIELD)
    return data.index(table), len(table)


def trie(data):
    start, _ = charsmap(data)
    return start + 4, int.from_bytes(data[start : start + 4], "little")


def with_large_trie(data):
    start, _ = charsmap(data)
    return data[:start] + b"\xff\xff\xff\x7f" + data[start + 4 :]


def with_leaves_outside(data):
    start, size = trie(data)
    return data[:start] + b"\xff" * size + data[start + size :]


def with_branches_outside(data):
    start, size = trie(data)
    return data[:start] + b"\x00\xff\xff\x7f" * (size // 4) + data[start + size :]


def with_a_long_replacement(data):
    start, length = charsmap(data)
    _, size = trie(data)
    return data[: start + 4 + size] + b"a" * (length - 5 - size) + data[start + length - 1 :]


@pytest.mark.parametrize(
    "change", [with_large_trie, with_leaves_outside, with_branches_outside, with_a_long_replacement]
)
def test_a_normalization_that_would_end_the_process_is_named(folder, tmp_path, change):
    """sentencepiece does not check the tables: it reads outside of them, or makes a text longer."""
    data = (folder / SENTENCEPIECE_FILE).read_bytes()
    assert len(change(data)) == len(data)
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(change(data))
    with pytest.raises(WeightsError, match=r"spiece\.model is not a .*normalization"):
        open_tokenizer(tmp_path)


def test_a_damaged_hub_file_is_named(tmp_path):
    (tmp_path / TOKENIZERS_FILE).write_text(Tokenizer.__name__)
    with pytest.raises(WeightsError, match=r"tokenizer\.json cannot be read"):
        open_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing\. Complete a folder"):
        open_tokenizer(tmp_path)
