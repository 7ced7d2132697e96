"""The text encoder: a tokenizer of whole words, and a small T5 encoder that is trained as well."""

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
LENGTH = 24  # tokens of every caption, padded, so that the codes always start at the same position
SEED = 2
WORD = r"[a-z]+#?|[0-9]+"


def vocabulary() -> list[str]:
    """Returns all words of the captions, sorted; each tempo is one word."""
    words = set(re.findall(WORD, " ".join(captions.vocabulary()).lower()))
    words |= {str(tempo) for tempo in range(TEMPOS[0], TEMPOS[1] + 1)}
    return [PAD, END, UNKNOWN, *sorted(words)]


def tokenizer() -> Tokenizer:
    """Returns a tokenizer of lower-case words, `</s>` and padding; unknown words are `<unk>`."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    made = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(f"$A {END}", None, [(END, ids[END])])
    made.enable_padding(pad_id=ids[PAD], pad_token=PAD, length=LENGTH)
    return made


def build() -> T5EncoderModel:
    """Returns the untrained encoder. Near tempos start with near embeddings, Db with that of C#."""
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
    """Returns [WIDTH] sine waves of the tempo's logarithm, from half a period to 32 periods."""
    place = np.log(tempo / TEMPOS[0]) / np.log(TEMPOS[1] / TEMPOS[0])
    phases = np.geomspace(0.5, 32, WIDTH // 2) * 2 * np.pi * place
    return np.sqrt(2) * np.concatenate([np.sin(phases), np.cos(phases)]).astype(np.float32)


def save(model: T5EncoderModel, folder: Path) -> None:
    """Write the encoder and the tokenizer in transformers' format."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
