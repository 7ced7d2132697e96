"""The start of a server: its log line, and memory that is short on a GPU."""

import logging

import torch

from musicgen import pipeline
from musicgen.conditioning.conditioner import MAX_TOKENS
from musicgen.decoder.decode_steps import slot_columns
from musicgen.decoder.slots import SLOTS_SHARE
from musicgen.decoder.state import State
from musicgen.pipeline import MusicGen


def test_the_start_logs_device_operations_slots_and_seconds(checkpoints, caplog):
    with caplog.at_level(logging.INFO, "musicgen"):
        model = MusicGen.load(checkpoints["text"], "cpu")
    [line] = [record.message for record in caplog.records if "is ready on" in record.message]
    assert line.startswith(f"text is ready on CPU ({torch.get_num_threads()} threads), torch ")
    assert (
        f"CPU operations, precision exact, {model.engine.slots} clips at once, texts of 512 "
        "tokens, loaded in " in line
    )


def test_where_memory_is_short_texts_are_cut_before_slots_are_given_up(checkpoints, monkeypatch):
    model = MusicGen.load(checkpoints["text"], "cpu")
    engine = model.engine
    columns = slot_columns(engine.lm, engine.max_length)
    fits = {tokens: State.slot_bytes(engine.lm, columns, tokens) for tokens in MAX_TOKENS}
    for tokens, expected in ((512, 512), (256, 256), (128, 128)):
        free = 32 * fits[tokens] / SLOTS_SHARE * 1.001
        monkeypatch.setattr(pipeline.memory, "free_bytes", lambda _: free)  # noqa: B023
        model = MusicGen.load(checkpoints["text"], "cpu")
        assert (model.engine.slots, model.conditioner.text.max_tokens) == (32, expected)


def test_a_second_server_on_a_full_gpu_starts_with_fewer_slots(models, monkeypatch, caplog):
    """Its memory was free when the slots were counted."""
    model, tried = models["text"], []
    monkeypatch.setattr(pipeline, "slots_that_fit", lambda *arguments: 12)
    monkeypatch.setattr(pipeline, "Engine", lambda lm, **options: tried.append(options["slots"]))

    def loop(engine):
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("full")
        return "loop"

    monkeypatch.setattr(pipeline, "Loop", loop)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert model._start_decoding(model.engine.lm) == "loop"
    assert tried == [12, 6, 3]
    assert "no memory for 12 slots, trying 6" in caplog.text


def test_on_a_gpu_the_codec_and_the_text_encoder_run_before_the_first_request(models, monkeypatch):
    model, ran = models["stereo-melody"], []
    monkeypatch.setattr(model.codec.model, "encode", lambda wav: ran.append("encode") or CODES)
    monkeypatch.setattr(model.codec, "_decode", lambda codes: ran.append("render") or WAV)
    text = model.conditioner.text
    monkeypatch.setattr(
        model.conditioner, "text", lambda prompt: ran.append("text") or text(prompt)
    )
    model._warm_up_codec_and_text()
    assert ran == ["text", "encode", "render"]


CODES, WAV = torch.zeros(2, 4, 50, dtype=torch.int64), torch.zeros(2, 1, 32000)
