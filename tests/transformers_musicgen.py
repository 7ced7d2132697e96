"""Small random MusicGen models in transformers' format: the reference for converting."""

from types import SimpleNamespace

import tiny_checkpoints
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
    T5Tokenizer,
)

from musicgen.checkpoints.checkpoint import DEMUCS_FILE
from training import configs

PROMPT = "two words"
CARD = 2048
CLASSES = {
    False: (MusicgenForConditionalGeneration, MusicgenConfig, MusicgenDecoderConfig),
    True: (
        MusicgenMelodyForConditionalGeneration,
        MusicgenMelodyConfig,
        MusicgenMelodyDecoderConfig,
    ),
}


def write_transformers(folder, kind, bias=False):
    """Write a model of `kind` (a key of configs.KINDS) to `folder`, and return it."""
    stereo, melody = configs.KINDS[kind]
    model_class, config_class, decoder_class = CLASSES[melody]
    decoder = decoder_class(
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=256,
        num_codebooks=8 if stereo else 4,
        vocab_size=CARD,
        audio_channels=2 if stereo else 1,
    )
    text = T5Config(vocab_size=98, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    parts = {"text_encoder": text, "audio_encoder": encodec_config(), "decoder": decoder}
    torch.manual_seed(tiny_checkpoints.SEED)
    model = model_class(
        config_class(**{name: part.to_dict() for name, part in parts.items()})
    ).eval()
    with torch.no_grad():  # numbers that float16 can hold, and logits with a clear maximum
        for name, weight in model.named_parameters():
            scale = 10 if name.startswith("decoder") and weight.dim() == 2 else 1
            weight.copy_((weight * scale).half().float())
    model.save_pretrained(folder)
    tiny_checkpoints.write_t5(folder / "tokenizer")
    for path in (folder / "tokenizer").glob("token*"):
        path.rename(folder / path.name)
    if melody:
        torch.save(tiny_checkpoints.demucs_package(), folder / DEMUCS_FILE)
    if bias:
        state = load_file(folder / "model.safetensors")
        state["decoder.model.decoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(64)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return model


def encodec_config():
    return EncodecConfig(
        sampling_rate=32000,
        audio_channels=1,
        target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=4,
        hidden_size=32,
        codebook_size=CARD,
        normalize=False,
        use_causal_conv=False,
        use_conv_shortcut=False,
        norm_type="weight_norm",
    )


def greedy_codes(model, folder, length):
    """The model's greedy codes [K, length] for PROMPT with guidance, as passed to its codec."""
    decoded = []

    def decode(codes, **_):
        decoded.append(codes.reshape(-1, codes.shape[-1]))
        return SimpleNamespace(audio_values=torch.zeros(1, 1, 1))

    model.audio_encoder.decode = decode
    inputs = T5Tokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    delay = model.config.decoder.num_codebooks // model.config.decoder.audio_channels - 1
    steps = length + delay
    model.generate(**inputs, do_sample=False, guidance_scale=3.0, max_new_tokens=steps)
    return torch.stack(decoded, dim=1).flatten(0, 1)  # left and right interleaved
