"""Configurations that ask for too much memory or time, or for secrets, are refused by name.

None of their numbers is used before it is checked.
"""

import base64
import os
import subprocess
import sys

import pytest
import torch
from broken import believed, load
from omegaconf import OmegaConf
from packages import change_config, change_json, change_package

from musicgen.checkpoints.checkpoint import CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.pickles import read_package
from musicgen.errors import WeightsError

COUNTS = [
    "transformer_lm.dim",
    "transformer_lm.num_heads",
    "transformer_lm.num_layers",
    "transformer_lm.hidden_scale",
    "transformer_lm.n_q",
    "transformer_lm.card",
    "dataset.segment_duration",
    "conditioners.self_wav.chroma_stem.radix2_exp",
    "conditioners.self_wav.chroma_stem.n_chroma",
    "conditioners.self_wav.chroma_stem.sample_rate",
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [10**9, -1, 0, float("nan"), float("inf"), "x", None, [1]])
def test_a_number_that_no_model_has_is_named(upstream, name, value):
    change_config(upstream / LM_FILE, {name: value})
    with pytest.raises(WeightsError, match=f"{upstream / LM_FILE}: {name}="):
        load(upstream)


def in_manifest(section):
    """A function that changes settings of a section of manifest.json."""

    def change(path, settings):
        def update(manifest):
            for name, value in settings.items():
                *parents, last = name.split(".")
                parent = manifest[section]
                for key in parents:
                    parent = parent[key]
                parent[last] = value

        change_json(path, update)

    return change


def in_first_band(path, settings):
    """Change settings of a diffusion band's configuration."""

    def change(package):
        for name, value in settings.items():
            OmegaConf.update(package[0]["cfg"], name, value, force_add=True)

    change_package(path, change)


def in_json(path, settings):
    """Change settings of a JSON file."""
    change_json(path, lambda document: document.update(settings))


def in_demucs(path, settings):
    """Change arguments of Demucs."""
    change_package(path, lambda package: package["kwargs"].update(settings))


# file, its checkpoint, a function that changes settings, a setting that is read
CONFIGURATIONS = [
    (LM_FILE, "upstream", change_config, "transformer_lm.activation"),
    (CODEC_FILE, "upstream", change_config, "seanet.pad_mode"),
    (DIFFUSION_FILE, "upstream", in_first_band, "processor.name"),
    (MANIFEST_FILE, "converted", in_manifest("lm"), "transformer_lm.activation"),
    (MANIFEST_FILE, "converted", in_manifest("codec"), "seanet.pad_mode"),
]
CALLS = [
    "${oc.env:UPLOAD_KEY}",
    "x${oc.env:UPLOAD_KEY}",
    "${x.${oc.env:UPLOAD_KEY}}",
    "${oc.decode:'${oc.env:UPLOAD_KEY}'}",
    "${ oc.env : UPLOAD_KEY }",
]


@pytest.mark.parametrize("value", CALLS)
@pytest.mark.parametrize(("file", "form", "change", "name"), CONFIGURATIONS)
def test_a_configuration_that_calls_a_function_is_refused(
    request, monkeypatch, file, form, change, name, value
):
    monkeypatch.setenv("UPLOAD_KEY", "0xC0FFEE")
    folder = request.getfixturevalue(form)
    change(folder / file, {name: value})
    believed(folder)
    with pytest.raises(WeightsError, match=f"{folder / file}: {name}=.*reference") as caught:
        load(folder)
    assert "C0FFEE" not in str(caught.value)


def test_a_reference_to_a_setting_that_calls_a_function_is_refused(upstream, monkeypatch):
    monkeypatch.setenv("UPLOAD_KEY", "0xC0FFEE")
    changes = {"mine": "${oc.env:UPLOAD_KEY}", "transformer_lm.activation": "${mine}"}
    change_config(upstream / LM_FILE, changes)
    with pytest.raises(WeightsError, match=r"transformer_lm\.activation=.*mine") as caught:
        load(upstream)
    assert "C0FFEE" not in str(caught.value)


def test_sections_that_are_not_read_may_call_functions(upstream):
    """Upstream's training configuration has this one."""
    change_config(upstream / LM_FILE, {"dora.dir": "/checkpoint/${oc.env:USER}/outputs"})
    load(upstream)


def test_yaml_aliases_are_refused(upstream):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bomb = "\n".join(lines)
    change_package(upstream / LM_FILE, lambda package: package.update({"xp.cfg": bomb}))
    with pytest.raises(WeightsError, match=r"state_dict\.bin: .*aliases"):
        load(upstream)


@pytest.mark.parametrize("name", ["..", "a/..", "/", ""])
def test_a_configuration_cannot_name_a_folder_outside(upstream, name):
    change_config(upstream / LM_FILE, {"conditioners.description.t5.name": name})
    with pytest.raises(WeightsError, match="not the name of a model"):
        load(upstream)


T5_FILE = "t5-base/config.json"
CHROMA = "conditioners.self_wav.chroma_stem"
# file, its checkpoint, a function that changes settings, the settings
TOO_MUCH = [
    (LM_FILE, "upstream", change_config, {"transformer_lm.num_layers": 2.5}),
    (LM_FILE, "upstream", change_config, {"transformer_lm.num_layers": True}),
    (LM_FILE, "upstream", change_config, {"transformer_lm.num_heads": 5}),
    (LM_FILE, "upstream", change_config, {f"{CHROMA}.radix2_exp": 2}),
    (LM_FILE, "upstream", change_config, {"codebooks_pattern.delay.delays": [0, 1, 2, 10**9]}),
    (LM_FILE, "upstream", change_config, {"codebooks_pattern.delay.delays": [0, 1]}),
    (LM_FILE, "upstream", change_config, {"codebooks_pattern.delay.delays": [0, 1, 2, "x"]}),
    (MANIFEST_FILE, "converted", in_manifest("lm"), {"dataset.segment_duration": 10**5}),
    (CODEC_FILE, "upstream", change_config, {"seanet.lstm": 10**7}),
    (CODEC_FILE, "upstream", change_config, {"seanet.n_residual_layers": 10**7}),
    (CODEC_FILE, "upstream", change_config, {"seanet.dilation_base": 10**7}),
    (CODEC_FILE, "upstream", change_config, {"seanet.ratios": [10**9, 1]}),
    (CODEC_FILE, "upstream", change_config, {"seanet.ratios": [1] * 17}),
    (CODEC_FILE, "upstream", change_config, {"seanet.pad_mode": "circular"}),
    (CODEC_FILE, "upstream", change_config, {"encodec.sample_rate": 10**9}),
    (CODEC_FILE, "upstream", change_config, {"rvq.bins": 10**12}),
    (MANIFEST_FILE, "converted", in_manifest("codec"), {"seanet.lstm": 10**7}),
    (T5_FILE, "upstream", in_json, {"num_layers": 10**8}),
    (T5_FILE, "upstream", in_json, {"num_heads": 10**8}),
    (T5_FILE, "upstream", in_json, {"relative_attention_max_distance": 8}),
    (T5_FILE, "upstream", in_json, {"relative_attention_num_buckets": 31}),
    (T5_FILE, "upstream", in_json, {"layer_norm_epsilon": float("nan")}),
    (DEMUCS_FILE, "upstream", in_demucs, {"t_layers": 10**8}),
    (DEMUCS_FILE, "upstream", in_demucs, {"depth": 10**8}),
    (DEMUCS_FILE, "upstream", in_demucs, {"segment": 10**5}),
    (DEMUCS_FILE, "upstream", in_demucs, {"samplerate": float("inf")}),
    (DEMUCS_FILE, "upstream", in_demucs, {"sources": ["x"] * 10**5}),
    (DIFFUSION_FILE, "upstream", in_first_band, {"schedule.num_steps": 10**10}),
    (DIFFUSION_FILE, "upstream", in_first_band, {"diffusion_unet.depth": 10**8}),
    (DIFFUSION_FILE, "upstream", in_first_band, {"diffusion_unet.res_blocks": 10**8}),
    (DIFFUSION_FILE, "upstream", in_first_band, {"diffusion_unet.hidden": 10**10}),
    (DIFFUSION_FILE, "upstream", in_first_band, {"processor.n_bands": 10**8}),
]


@pytest.mark.parametrize(
    ("file", "form", "change", "settings"),
    [
        pytest.param(*row, id=f"{row[0]} {next(iter(row[3]))} {index}")
        for index, row in enumerate(TOO_MUCH)
    ],
)
def test_a_number_that_asks_for_too_much_is_named(request, file, form, change, settings):
    folder = request.getfixturevalue(form)
    change(folder / file, settings)
    believed(folder)
    [name] = settings
    with pytest.raises(WeightsError, match=f"{folder / file}.*{name.rpartition('.')[2]}"):
        load(folder)


NESTED = {
    "yaml": "[" * 100_000,
    "yaml mappings": "{a: " * 100_000,
    "long": "a: " + "x" * 2**21,
    "many values": f"transformer_lm: [{'1, ' * 20_000}]",
}


@pytest.mark.parametrize("case", NESTED)
def test_a_text_that_would_crash_the_parser_is_refused(upstream, case):
    change_package(upstream / LM_FILE, lambda package: package.update({"xp.cfg": NESTED[case]}))
    with pytest.raises(WeightsError, match=r"state_dict\.bin cannot be read"):
        load(upstream)


def test_strings_of_a_manifest_that_double_each_other_are_refused(converted):
    """25 levels would be a text of 32 million times the first one's length."""
    texts = {"x0": "ha"} | {f"x{k}": f"${{x{k - 1}}}" * 2 for k in range(1, 25)}

    def change(manifest):
        manifest["lm"].update(texts)
        manifest["lm"]["transformer_lm"]["activation"] = "${x24}"

    change_json(converted / MANIFEST_FILE, change)
    with pytest.raises(WeightsError, match=r"manifest\.json: .*refused") as caught:
        load(converted)
    assert len(str(caught.value)) < 400


# --- tokenizers -------------------------------------------------------------------------------


def doubling():
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"normalizer": {"type": "Sequence", "normalizers": [replace] * 9}}


def charsmap(data):
    table = base64.b64encode(data).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}


TOKENIZERS = {
    "a trie of 4 GB": charsmap(b"\xff\xff\xff\xff\x00\x00\x00\x00"),
    "a trie that leads outside": charsmap(b"\x04\x00\x00\x00\x00\xff\xff\x7f"),
    "a leaf outside": charsmap(b"\x04\x00\x00\x00\xff\xff\xff\xff"),
    "a long replacement": charsmap(b"\x00\x04\x00\x00" + bytes(1024) + b"a" * 10**6 + b"\0"),
    "ten times as long nine times": doubling(),
    "another normalizer": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "exponential search": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Removed",
            "invert": False,
        }
    },
    "a billion of padding": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    },
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_would_end_the_process_is_refused(upstream, case):
    in_json(upstream / "t5-base" / "tokenizer.json", TOKENIZERS[case])
    with pytest.raises(WeightsError, match=r"tokenizer\.json is not a tokenizer of T5"):
        load(upstream)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(upstream):
    """Its last tokens would fail at the first prompt that contains them."""
    path = upstream / "t5-base" / "tokenizer.json"
    change_json(path, lambda document: document["model"]["vocab"].append(["new", -1.0]))
    with pytest.raises(WeightsError, match="99 tokens, but the text encoder has embeddings of 98"):
        load(upstream)


def test_a_projection_of_another_width_is_refused(upstream):
    name = "condition_provider.conditioners.description.output_proj.weight"

    def narrow(package):
        package["best_state"][name] = package["best_state"][name][:, :16].contiguous()

    change_package(upstream / LM_FILE, narrow)
    with pytest.raises(WeightsError, match=r"state_dict\.bin: .*\(64, 16\).*32 features"):
        load(upstream)


# --- memory -----------------------------------------------------------------------------------


class Allocates:
    """Unpickling it makes three billion bytes."""

    def __reduce__(self):
        return bytearray, (3_000_000_000,)


LOADING = """
import resource, sys
from pathlib import Path
from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.pickles import read_package
from musicgen.errors import WeightsError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        open_checkpoint(path) if path.is_dir() else read_package(path)
    except WeightsError:
        continue
    sys.exit(f"{path} was loaded")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_dictionaries_that_share_their_values_are_looked_at_once(tmp_path):
    """A walk along every path would take 2**60 steps."""
    package = {}
    for _ in range(60):
        package = {"left": package, "right": package}
    torch.save(package, tmp_path / "shared.bin")
    assert read_package(tmp_path / "shared.bin").keys() == {"left", "right"}


def test_refusing_hostile_files_takes_little_memory(upstream, tmp_path):
    """They ask for 3 GB and more."""
    torch.save({"x": Allocates()}, tmp_path / "bytes.bin")
    change_config(
        upstream / LM_FILE,
        {
            "dataset.segment_duration": 1024,
            f"{CHROMA}.sample_rate": 2**20,
            f"{CHROMA}.radix2_exp": 20,
        },
    )
    files = [tmp_path / "bytes.bin", upstream]
    command = [sys.executable, "-W", "ignore", "-c", LOADING, *files]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
