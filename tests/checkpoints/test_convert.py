"""Converting keeps the music of either format, and never executes code of a file."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from packages import change_config, change_json, change_package
from safetensors.torch import load_file, save_file
from transformers_musicgen import PROMPT, greedy_codes, write_transformers

from musicgen.checkpoints.checkpoint import CODEC_FILE, DEMUCS_FILE, open_checkpoint
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.demucs_file import open_demucs
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.transformers_musicgen import _hidden_scale
from musicgen.commands.verify import verify
from musicgen.decoder.clip import Clip
from musicgen.decoder.sampling import Sampling
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from training import configs


@pytest.fixture
def source(checkpoints, tmp_path):
    """A copy of a checkpoint, to be changed."""
    return shutil.copytree(checkpoints["stereo-melody"], tmp_path / "source")


@pytest.mark.parametrize("kind", configs.KINDS)
def test_converted_folders_make_the_same_music(checkpoints, models, tmp_path, kind):
    convert(checkpoints[kind], tmp_path / kind)
    audio = None
    if "melody" in kind:
        audio = tmp_path / "melody.wav"
        soundfile.write(audio, torch.sin(torch.arange(32000) * 0.06).numpy(), 32000)
    request = Request(prompt="a short song", input_audio=audio, duration=1, seed=3)
    theirs = models[kind].generate(request)
    ours = MusicGen.load(tmp_path / kind, "cpu").generate(request)
    assert torch.equal(ours.wavs[0], theirs.wavs[0])
    assert ours.model == kind


def test_every_file_is_in_the_precision_that_it_runs_in(checkpoints, tmp_path):
    manifest = convert(checkpoints["stereo-melody"], tmp_path / "out")
    dtypes = {
        name: {tensor.dtype for tensor in load_file(tmp_path / "out" / name).values()}
        for name in manifest.files
        if name.endswith(".safetensors")
    }
    assert dtypes["codec.safetensors"] == {torch.float32}
    assert dtypes["htdemucs.safetensors"] == {torch.float32}
    assert dtypes["t5-base/model.safetensors"] == {torch.float32}
    lm = load_file(tmp_path / "out" / "lm.safetensors")
    wide = {name for name, tensor in lm.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in lm if name.startswith("condition_provider.")}
    assert all(tensor.dtype == torch.float16 for name, tensor in lm.items() if name not in wide)


def test_a_codec_keeps_its_precision(source, tmp_path):
    def narrow(package):
        state = package["best_state"]
        package["best_state"] = {
            name: value.half() if value.is_floating_point() else value
            for name, value in state.items()
        }

    change_package(source / CODEC_FILE, narrow)
    convert(source, tmp_path / "out")
    codec = load_file(tmp_path / "out" / "codec.safetensors")
    assert torch.float32 not in {tensor.dtype for tensor in codec.values()}
    request = Request(prompt="a short song", duration=1, seed=3)
    wavs = [
        MusicGen.load(folder, "cpu").generate(request).wavs[0]
        for folder in (source, tmp_path / "out")
    ]
    assert torch.equal(*wavs)


def test_a_model_without_separation_needs_no_demucs(source, tmp_path):
    change_config(source / LM_FILE, {"conditioners.self_wav.chroma_stem.separator": "none"})
    (source / DEMUCS_FILE).unlink()
    manifest = convert(source, tmp_path / "out")
    assert not [name for name in manifest.files if "demucs" in name]
    audio = tmp_path / "melody.wav"
    soundfile.write(audio, torch.sin(torch.arange(32000) * 0.06).numpy(), 32000)
    for folder in (source, tmp_path / "out"):
        model = MusicGen.load(folder, "cpu")
        wav = torch.randn(1, 32000)
        assert torch.equal(model.conditioner.melody.separate(wav), wav)
        clips = [
            model.generate(Request(input_audio=melody, duration=1, temperature=0, seed=1)).wavs[0]
            for melody in (audio, None)
        ]
        assert not torch.equal(*clips)


def test_float32_weights_lose_nothing(source, tmp_path):
    def widen(package):
        package["best_state"] = {k: v.float() * 1.0001 for k, v in package["best_state"].items()}

    change_package(source / LM_FILE, widen)
    convert(source, tmp_path / "out")
    before = open_checkpoint(source).state
    after = open_checkpoint(tmp_path / "out").state
    assert after["transformer.layers.1.linear1.weight"].dtype == torch.float32
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_too_large_for_float16_are_refused_by_name(source, tmp_path):
    name = "transformer.layers.0.linear2.weight"

    def enlarge(package):
        package["best_state"][name] = package["best_state"][name].float() + 70_000

    change_package(source / LM_FILE, enlarge)
    with pytest.raises(WeightsError, match=rf"{name}.*not finite as torch\.float16"):
        convert(source, tmp_path / "out")
    with pytest.raises(WeightsError, match="not a MusicGen checkpoint"):
        open_checkpoint(tmp_path / "out")  # without a manifest, it is not a checkpoint


def test_the_manifest_states_the_facts_of_the_model(checkpoints, tmp_path):
    convert(checkpoints["stereo-melody"], tmp_path / "out")
    document = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert document["name"] == "stereo-melody"
    assert "CC-BY-NC-4.0" in document["licence"]
    assert document["lm"]["transformer_lm"]["n_q"] == 8
    assert document["files"]["lm.safetensors"].keys() == {"bytes", "sha256"}
    on_disk = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert on_disk == {MANIFEST_FILE, *document["files"]}


def test_references_in_the_configuration_are_resolved(source, tmp_path):
    rate = "${sample_rate}"
    chroma = "conditioners.self_wav.chroma_stem.sample_rate"
    change_config(source / LM_FILE, {"sample_rate": 32000, chroma: rate})
    change_config(source / CODEC_FILE, {"sample_rate": 32000, "encodec.sample_rate": rate})
    convert(source, tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.chroma["sample_rate"] == 32000
    assert checkpoint.manifest.codec["encodec"]["sample_rate"] == 32000


def test_converting_twice_or_over_a_checkpoint_is_refused(checkpoints, tmp_path):
    convert(checkpoints["text"], tmp_path / "out")
    with pytest.raises(WeightsError, match="already; name another folder"):
        convert(checkpoints["stereo"], tmp_path / "out")
    # The source is memory-mapped: writing to it would change the tensors that are read.
    with pytest.raises(WeightsError, match="already; name another folder"):
        convert(checkpoints["stereo"], checkpoints["stereo"])
    with pytest.raises(WeightsError, match="is converted already"):
        convert(tmp_path / "out", tmp_path / "again")


class TouchesAFile:
    """Runs code when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


MALICIOUS = {
    LM_FILE: lambda path, bomb: torch.save({"xp.cfg": "", "best_state": bomb}, path),
    CODEC_FILE: lambda path, bomb: torch.save({"xp.cfg": bomb, "best_state": {}}, path),
    DEMUCS_FILE: lambda path, bomb: torch.save({"klass": bomb}, path),
    "t5-base/pytorch_model.bin": lambda path, bomb: torch.save({"shared.weight": bomb}, path),
    "encodec_32khz/pytorch_model.bin": lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_pickled_code_is_never_executed(source, tmp_path, name):
    if name.startswith("encodec_32khz"):
        torch.save({"pretrained": "facebook/encodec_32khz"}, source / CODEC_FILE)
        (source / "encodec_32khz").mkdir()
        (source / "encodec_32khz" / "config.json").write_text("{}")
    (source / "t5-base" / "model.safetensors").unlink(missing_ok="pytorch" in name)
    if not name.startswith("t5"):
        write_bin(source / "t5-base")
    MALICIOUS[name](source / name, TouchesAFile(tmp_path / "executed"))
    with pytest.raises(WeightsError, match=Path(name).name):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def write_bin(folder):
    """T5's weights as a pickle, as in older repositories."""
    torch.save({"shared.weight": torch.zeros(98, 32)}, folder / "pytorch_model.bin")


def test_the_decoder_of_a_text_encoder_is_left_out(source, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config.from_pretrained(source / "t5-base")
    whole = T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(source / "t5-base")
    convert(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "t5-base" / "model.safetensors")
    assert not any("decoder" in name for name in state)
    ours = MusicGen.load(tmp_path / "out", "cpu").conditioner.text.encoder
    tokens = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        expected = whole.encoder(tokens).last_hidden_state
        torch.testing.assert_close(ours(tokens[0]), expected[0])


WRONG = {
    "positions": ("transformer_lm.positional_embedding", "rope", "positional_embedding"),
    "normalization": ("transformer_lm.norm", "rms_norm", "norm"),
    "layers": ("transformer_lm.num_layers", 3, r"transformer\.layers\.2\..*is missing"),
    "width": ("transformer_lm.dim", 32, "has another shape"),
    "conditioner": ("conditioners.self_wav.model", "style", "self_wav.*not supported"),
    "pattern": ("codebooks_pattern.modeling", "parallel", "modeling='parallel'"),
    "flattened": ("codebooks_pattern.delay.flatten_first", 2, "flatten_first=2"),
    "empty": ("codebooks_pattern.delay.empty_initial", 1, "empty_initial=1"),
    "late": ("codebooks_pattern.delay.delays", [1, 1, 2, 2, 3, 3, 4, 4], "do not begin at 0"),
    "stereo": ("interleave_stereo_codebooks.per_timestep", True, "per_timestep=True"),
    "cross positions": ("fuser.cross_attention_pos_emb", True, "cross_attention_pos_emb=True"),
    "sum": ("fuser.sum", ["description"], r"fuser.sum=\['description'\]"),
    "interpolated": ("fuser.input_interpolate", ["self_wav"], "input_interpolate"),
    "both": ("fuser.cross", ["description"], "both in use"),
    "words": ("conditioners.description.t5.normalize_text", True, "normalize_text=True"),
    "magnet": ("lm_model", "transformer_lm_magnet", "lm_model='transformer_lm_magnet'"),
    "codebooks": ("compression_model_n_q", 2, "compression_model_n_q=2"),
    "kind": ("conditioners", None, "cannot be read .*another format"),
    "no shape": ("transformer_lm", {}, r"transformer_lm\.dim=None is not a whole number"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_architecture_is_refused_by_the_name_of_its_setting(source, tmp_path, wrong):
    key, value, message = WRONG[wrong]
    change_config(source / LM_FILE, {key: value})
    with pytest.raises(WeightsError, match=rf"{LM_FILE}.*{message}"):
        convert(source, tmp_path / "out")


def test_demucs_is_only_ever_an_htdemucs(source, tmp_path):
    convert(source, tmp_path / "out")
    path = tmp_path / "out" / "htdemucs.safetensors"
    expected = open_demucs(source / DEMUCS_FILE).load().state_dict()
    found = open_demucs(path).load().state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    path.write_bytes(path.read_bytes().replace(b"htdemucs.HTDemucs", b"evildemux.Popen__"))
    with pytest.raises(WeightsError, match=r"htdemucs\.safetensors is a demucs\.evildemux"):
        open_demucs(path)


def test_demucs_loads_with_its_authors_loader(source, tmp_path):
    from demucs.hf import load_safetensors_model

    convert(source, tmp_path / "out")
    model = load_safetensors_model(tmp_path / "out" / "htdemucs.safetensors")
    assert model.segment == open_demucs(source / DEMUCS_FILE).load().segment


@pytest.mark.parametrize("kind", ["text", "stereo", "melody"])
def test_transformers_repositories_give_the_same_codes(tmp_path, kind):
    theirs = write_transformers(tmp_path / "hf", kind)
    manifest = convert(tmp_path / "hf", tmp_path / "out")
    assert manifest.codec is None
    model = MusicGen.load(tmp_path / "out", "cpu")
    [given] = model.conditioner(PROMPT, None, [0.0])
    codes = model.engine.generate([Clip(20, 0, Sampling(temperature=0.0), [given], None)])[0]
    assert torch.equal(codes, greedy_codes(theirs, tmp_path / "hf", codes.shape[-1]))


def test_a_transformers_weight_without_a_counterpart_is_named(tmp_path):
    write_transformers(tmp_path / "hf", "text", bias=True)
    with pytest.raises(WeightsError, match=r"self_attn\.k_proj\.bias has no place"):
        convert(tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_missing_transformers_weight_blames_the_file_of_weights(tmp_path, sharded):
    """Not config.json, which is whole."""
    model = write_transformers(tmp_path / "hf", "text")
    name = "model.safetensors"
    if sharded:
        (tmp_path / "hf" / name).unlink()
        model.save_pretrained(tmp_path / "hf", max_shard_size="3MB")
        name = "model.safetensors.index.json"
    for path in (tmp_path / "hf").glob("*.safetensors"):
        state = load_file(path)
        save_file({k: v for k, v in state.items() if "enc_to_dec_proj" not in k}, path)
    with pytest.raises(
        WeightsError, match=rf"hf/{name}: it does not have the weights .*description"
    ):
        convert(tmp_path / "hf", tmp_path / "out")


def test_an_unsupported_transformers_setting_blames_the_configuration(tmp_path):
    write_transformers(tmp_path / "hf", "text")
    change_json(
        tmp_path / "hf" / "config.json",
        lambda config: config["decoder"].update(activation_function="relu"),
    )
    with pytest.raises(WeightsError, match=r"hf/config\.json: transformer_lm\.activation='relu'"):
        convert(tmp_path / "hf", tmp_path / "out")


def test_an_unsupported_setting_of_a_converted_model_blames_the_manifest(source, tmp_path):
    convert(source, tmp_path / "out")
    change_json(
        tmp_path / "out" / MANIFEST_FILE,
        lambda manifest: manifest["lm"]["transformer_lm"].update(norm="rms_norm"),
    )
    with pytest.raises(WeightsError, match=rf"out/{MANIFEST_FILE}: transformer_lm\.norm="):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(("dim", "ffn_dim"), [(11, 15), (13, 30), (64, 256), (1536, 6144)])
def test_a_transformers_width_survives_audiocrafts_factor(dim, ffn_dim):
    """15 / 11 * 11 is 14.999999999999998 in floating point."""
    assert int(_hidden_scale(ffn_dim, dim) * dim) == ffn_dim


def test_other_transformers_models_are_refused(tmp_path):
    write_transformers(tmp_path / "hf", "text")
    path = tmp_path / "hf" / "config.json"
    path.write_text(path.read_text().replace("MusicgenFor", "BarkFor"))
    with pytest.raises(WeightsError, match=r"config\.json: BarkForConditionalGeneration is not"):
        convert(tmp_path / "hf", tmp_path / "out")


def test_settings_that_change_nothing_are_accepted(source, tmp_path):
    change_config(source / LM_FILE, {"compression_model_n_q": 4})
    assert convert(source, tmp_path / "out")


def test_matrices_that_float16_would_round_keep_float32(source, tmp_path):
    def widen(package):
        state = {name: value.float() for name, value in package["best_state"].items()}
        state["transformer.layers.0.linear1.weight"] += 1e-7
        package["best_state"] = state

    change_package(source / LM_FILE, widen)
    convert(source, tmp_path / "out")
    found = load_file(tmp_path / "out" / "lm.safetensors")
    assert found["transformer.layers.0.linear1.weight"].dtype == torch.float32
    assert found["transformer.layers.1.linear1.weight"].dtype == torch.float16
    request = Request(prompt="x", duration=1, seed=3, temperature=0)
    ours, theirs = (MusicGen.load(f, "cpu").generate(request) for f in (tmp_path / "out", source))
    assert torch.equal(ours.wavs[0], theirs.wavs[0])
    assert list(verify(tmp_path / "out"))
