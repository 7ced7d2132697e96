"""The text encoder: a tokenizer of whole words, and a T5 encoder small enough to train along."""

import re
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel

from training import captions
from training.song import TEMPOS

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
WIDTH = 128
LENGTH = 24  # tokens of any caption, padded: the music always begins at the same position
SEED = 2
WORD = r"[a-z]+#?|[0-9]+"


def vocabulary() -> list[str]:
    """Every word that a caption may hold, tempos as whole words, sorted."""
    words = set(re.findall(WORD, " ".join(captions.vocabulary()).lower()))
    words |= {str(tempo) for tempo in range(TEMPOS[0], TEMPOS[1] + 1)}
    return [PAD, END, UNKNOWN, *sorted(words)]


def tokenizer() -> Tokenizer:
    """Words in lower case, then `</s>`, then padding; a word that is not known is `<unk>`."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    made = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(f"$A {END}", None, [(END, ids[END])])
    made.enable_padding(pad_id=ids[PAD], pad_token=PAD, length=LENGTH)
    return made


def build() -> T5EncoderModel:
    """The untrained encoder. Tempos begin as neighbours of each other, Db as what C# is."""
    words = vocabulary()
    ids = {word: index for index, word in enumerate(words)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = T5EncoderModel(
            T5Config(
                vocab_size=len(words),
                d_model=WIDTH,
                d_kv=32,
                d_ff=2 * WIDTH,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for tempo in range(TEMPOS[0], TEMPOS[1] + 1):
            table[ids[str(tempo)]] = torch.from_numpy(tempo_features(tempo))
        for sharp, flat in zip(captions.SHARP, captions.FLAT, strict=True):
            table[ids[flat.lower()]] = table[ids[sharp.lower()]]
    return model


def tempo_features(tempo: int) -> np.ndarray:
    """Waves over the logarithm of the tempo, from half a turn to 32 turns [WIDTH]."""
    place = np.log(tempo / TEMPOS[0]) / np.log(TEMPOS[1] / TEMPOS[0])
    turns = np.geomspace(0.5, 32, WIDTH // 2) * 2 * np.pi * place
    return np.sqrt(2) * np.concatenate([np.sin(turns), np.cos(turns)]).astype(np.float32)


def save(model: T5EncoderModel, folder: Path) -> None:
    """Write both as transformers does."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
