"""Checkpoints as other programs write them are read, or refused with a remedy."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from packages import change_config, change_json, change_package
from safetensors.torch import load_file, save_file
from transformers_musicgen import PROMPT, greedy_codes, write_transformers

from musicgen.checkpoints.checkpoint import CODEC_FILE, open_checkpoint
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE
from musicgen.commands.verify import verify
from musicgen.decoder.clip import Clip
from musicgen.decoder.sampling import Sampling
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen


@pytest.fixture
def source(checkpoints, tmp_path):
    """A copy of a text checkpoint, to be changed."""
    return shutil.copytree(checkpoints["text"], tmp_path / "source")


# --- checkpoints of training ------------------------------------------------------------------


def in_model(package):
    package["best_state"] = {"model": package["best_state"]}


def in_fsdp(package):
    state = package.pop("best_state")
    package |= {"best_state": {}, "fsdp_best_state": {"model": state}, "optimizer": {}}


def with_config_object(package):
    package["xp.cfg"] = OmegaConf.create(package["xp.cfg"])


def as_lightning(package):
    package["state_dict"] = package.pop("best_state")
    del package["xp.cfg"]


@pytest.mark.parametrize("file", [LM_FILE, CODEC_FILE])
@pytest.mark.parametrize("change", [in_model, in_fsdp, with_config_object, as_lightning])
def test_a_checkpoint_of_training_is_refused_with_the_export_call(source, tmp_path, file, change):
    change_package(source / file, change)
    for read in (lambda: MusicGen.load(source, "cpu"), lambda: convert(source, tmp_path / "out")):
        with pytest.raises(WeightsError, match=rf"{source / file}.*export_lm\(") as caught:
            read()
        assert "\x1b" not in str(caught.value)
        assert "trust" not in str(caught.value)


@pytest.mark.parametrize("file", [LM_FILE, CODEC_FILE])
def test_pytorchs_old_format_is_refused_with_a_remedy(source, file):
    package = torch.load(source / file, weights_only=True)
    torch.save(package, source / file, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=rf"{source / file} .*before version 1\.6.*torch\.save"):
        MusicGen.load(source, "cpu")


def test_no_message_has_escape_codes_or_advises_to_unpickle(source):
    """torch's own messages have both."""
    path = source / LM_FILE
    torch.save({"xp.cfg": print, "best_state": {}}, path)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(source)
    assert "\x1b" not in str(caught.value)
    assert "trust" not in str(caught.value)


# --- adapters and incomplete folders ----------------------------------------------------------


def test_a_lora_adapter_is_refused_with_the_merge_call(tmp_path):
    base = {"base_model_name_or_path": "facebook/musicgen-small"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(base))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for read in (open_checkpoint, lambda folder: convert(folder, tmp_path / "out")):
        with pytest.raises(WeightsError, match=r"adapter of facebook/musicgen-small.*merge_and_"):
            read(tmp_path)


@pytest.mark.parametrize("key", ["transformer.layers.0.linear1.lora_A.weight", "lora.x"])
def test_weights_of_an_adapter_in_a_state_are_named(source, key):
    change_package(source / LM_FILE, lambda p: p["best_state"].update({key: torch.zeros(1)}))
    with pytest.raises(WeightsError, match=rf"{LM_FILE}: {key} is part of a LoRA adapter"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["t5-base", CODEC_FILE])
def test_what_a_folder_lacks_is_named_with_the_command(source, tmp_path, name):
    path = source / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for read in (lambda: MusicGen.load(source, "cpu"), lambda: convert(source, tmp_path / "out")):
        with pytest.raises(WeightsError, match=rf"{path} is missing.*scripts/weights pull"):
            read()


# --- weights that nobody reads ----------------------------------------------------------------

PROVIDER = "condition_provider.conditioners."
UNREAD = [
    "description.t5.shared.weight",
    "description.output_proj.scale",
    "style.output_proj.weight",
    "self_wav.output_proj.weight",
    "self_wav.chroma.spec.window",
]


@pytest.mark.parametrize("name", UNREAD)
def test_a_weight_that_would_be_ignored_is_named(source, name):
    key = f"{PROVIDER}{name}"
    change_package(source / LM_FILE, lambda p: p["best_state"].update({key: torch.zeros(1)}))
    with pytest.raises(WeightsError, match=rf"{LM_FILE}: .*{name.rpartition('.')[0]}"):
        open_checkpoint(source)


def test_a_text_encoder_that_was_tuned_but_not_saved_is_named(source):
    change_config(source / LM_FILE, {"conditioners.description.t5.finetune": True})
    with pytest.raises(WeightsError, match=rf"{LM_FILE}: .*finetune=True, but it has no weights"):
        open_checkpoint(source)


def test_a_layer_of_a_text_encoder_that_would_be_ignored_is_named(source):
    change_json(source / "t5-base" / "config.json", lambda config: config.update(num_layers=1))
    with pytest.raises(WeightsError, match=r"t5-base.*encoder\.block\.1\..*would be ignored"):
        MusicGen.load(source, "cpu")


# --- transformers -----------------------------------------------------------------------------


def resave(folder, change):
    """Change the state of a transformers folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def old_weight_norm(folder):
    """EnCodec's weight norm has had other names since transformers 4.40."""
    names = {"parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"

    def change(state):
        for key in [*state]:
            for new, old in names.items():
                if key.endswith(new):
                    state[key.replace(new, old)] = state.pop(key)

    resave(folder, change)


def as_pickle(folder):
    """Repositories of 2023 have no safetensors."""
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def tied_by_the_other_name(folder):
    """Of tied embeddings, a version of transformers saves one name or the other."""
    old, new = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"
    resave(folder, lambda state: state.update({new: state.pop(old)}) if old in state else None)


def tied_by_both_names(folder):
    old, new = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"

    def change(state):
        tensor = state[old] if old in state else state[new]
        state.update({old: tensor.clone(), new: tensor.clone()})

    resave(folder, change)


def with_positions(folder):
    """Versions before 4.38 saved the table of positions."""
    table = {"decoder.model.decoder.embed_positions.weights": torch.zeros(2048, 64)}
    resave(folder, lambda state: state.update(table))


def old_configuration(folder):
    """`dtype` was `torch_dtype`; mono decoders had no audio_channels."""

    def change(config):
        config.pop("dtype", None)
        config["torch_dtype"] = "float16"
        for part in ("decoder", "text_encoder", "audio_encoder"):
            config[part].pop("dtype", None)
            config[part]["torch_dtype"] = "float32"
        config["decoder"].pop("audio_channels")

    change_json(folder / "config.json", change)


VERSIONS = [
    old_weight_norm,
    as_pickle,
    tied_by_the_other_name,
    tied_by_both_names,
    with_positions,
    old_configuration,
]


def codes_of(folder):
    """The greedy codes of a converted checkpoint for PROMPT."""
    model = MusicGen.load(folder, "cpu")
    [given] = model.conditioner(PROMPT, None, [0.0])
    return model.engine.generate([Clip(20, 0, Sampling(temperature=0.0), [given], None)])[0]


@pytest.mark.parametrize("change", VERSIONS)
def test_folders_of_older_transformers_give_the_same_codes(tmp_path, change):
    model = write_transformers(tmp_path / "hf", "text")
    expected = greedy_codes(model, tmp_path / "hf", 20)
    change(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out")
    assert torch.equal(codes_of(tmp_path / "out"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["text", "melody"])
def test_folders_in_half_precision_give_transformers_codes(tmp_path, kind, dtype):
    model = write_transformers(tmp_path / "hf", kind)
    model.to(dtype).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out")
    expected = greedy_codes(model.float(), tmp_path / "hf", 20)
    assert torch.equal(codes_of(tmp_path / "out"), expected)
    assert list(verify(tmp_path / "out"))


# --- folders that mix two models --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [LM_FILE, CODEC_FILE, "mbd_musicgen_32khz.th", "t5-base/pytorch_model.bin"]
)
def test_verify_finds_weights_that_the_manifest_does_not_list(checkpoints, tmp_path, name):
    convert(checkpoints["text"], tmp_path / "out")
    shutil.copy(checkpoints["text"] / LM_FILE, tmp_path / "out" / name)
    (tmp_path / "out" / "README.md").write_text("Other files may be there.")
    with pytest.raises(WeightsError, match=rf"files of another model.*: {name}\. Remove"):
        list(verify(tmp_path / "out"))
