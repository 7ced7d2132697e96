"""Gathers a model and the models it depends on, from the hub or from local files; converts them."""

import json
import re
import shutil
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

import torch
import yaml

from musicgen.checkpoints import archive
from musicgen.checkpoints.checkpoint import (
    ADAPTER_FILE,
    CODEC_FILE,
    DEMUCS_FILE,
    DEMUCS_TENSORS,
    DIFFUSION_FILE,
    OPENERS,
    open_checkpoint,
    refuse_adapter,
)
from musicgen.checkpoints.convert import SOURCES_FILE, TOKENIZER_FILES, UNKNOWN_LICENCE, convert
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.hub import Download, Repository, explained, repository
from musicgen.checkpoints.manifest import Manifest, Source
from musicgen.checkpoints.pickles import read_package
from musicgen.checkpoints.reading import local_name
from musicgen.checkpoints.transformers_model import CONFIG_FILE
from musicgen.checkpoints.transformers_musicgen import MELODY_SETTINGS, follows_melodies
from musicgen.errors import WeightsError

DOWNLOADS = ".download"  # subfolder for the files until they are converted
UNPACKED = "unpacked"  # subfolder of DOWNLOADS for the members of a tar
TAR = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz)$")
DEMUCS = ("adefossez/HTDemucs", "htdemucs.yaml")
DIFFUSION = "facebook/multiband-diffusion"
ENCODEC = "facebook/encodec_32khz"  # that of every published MusicGen
TEXT_OWNER = "google-t5"  # owner of a text encoder that a configuration names without one
# The published models by their names without the owner.
KINDS = ("small", "medium", "large", "melody", "melody-large")
PUBLISHED = {
    **{f"musicgen-{kind}": f"facebook/musicgen-{kind}" for kind in KINDS},
    **{f"musicgen-stereo-{kind}": f"facebook/musicgen-stereo-{kind}" for kind in KINDS},
    "musicgen-songstarter-v0.2": "nateraw/musicgen-songstarter-v0.2",
}
STYLE = "musicgen-style"


def pull(model: str, folder: Path, *, diffusion: bool = False) -> Manifest:
    """Fetch `model` and the models it depends on, and convert them to `folder`.

    `model` is a repository of the hub, or a local folder or tar, of which only what is missing is
    fetched. A second call continues an interrupted one. Raises WeightsError for a missing
    repository or file, a hash that does not match, a full disk, or no network.
    """
    if any((folder / name).exists() for name in OPENERS):
        raise WeightsError(
            f"{folder} holds a checkpoint already; remove it first, or name another folder."
        )
    local = Path(model).expanduser()
    if not local.exists():
        check_name(model)
    download = Download(folder / DOWNLOADS)
    with explained(folder):
        if local.exists():
            gather_local(download, local)
        else:
            fetch_model(download, model)
        fetch_dependencies(download)
        if diffusion and not download.has_local(DIFFUSION_FILE):
            download.fetch(repository(DIFFUSION), {DIFFUSION_FILE: DIFFUSION_FILE})
        sources = json.dumps([asdict(source) for source in download.sources])
        (download.folder / SOURCES_FILE).write_text(sources)
        manifest = convert(download.folder, folder, checkpoint_name(model))
    shutil.rmtree(download.folder)
    return manifest


def check_name(model: str) -> None:
    """Raises WeightsError, before any network, for a name without owner or an unsupported model."""
    owner, _, name = model.rpartition("/")
    if name == STYLE:
        raise WeightsError(
            f"{model} is not supported: its style conditioner is not implemented. "
            "weights/README.md lists the supported models."
        )
    if not owner:
        near = get_close_matches(name, PUBLISHED, n=1)
        advice = f"Did you mean {PUBLISHED[near[0]]}?" if near else "Name a model as OWNER/NAME."
        raise WeightsError(
            f"There is no file or folder {model!r}, and names on the hub have an owner. {advice}"
        )


def checkpoint_name(model: str) -> str:
    """The name of a checkpoint that is pulled from `model`."""
    return TAR.sub("", local_name(str(Path(model))))


def gather_local(download: Download, source: Path) -> None:
    """Link the files of a local folder or tar into the download folder."""
    if source.is_file():
        unpacked = download.folder / UNPACKED
        archive.unpack(source, unpacked)
        source = _model_folder(unpacked)
    refuse_adapter(source)
    if (source / MANIFEST_FILE).exists():
        raise WeightsError(f"{source} is converted already; it needs no pull.")
    if not any((source / name).exists() for name in (LM_FILE, CONFIG_FILE)):
        raise WeightsError(f"{source} holds no model: neither {LM_FILE} nor {CONFIG_FILE}.")
    print(f"{source}: completing a local model")
    download.link(source)
    download.sources.append(Source(source.resolve().name, UNKNOWN_LICENCE))


def _model_folder(root: Path) -> Path:
    """The folder below `root` that holds a model, the topmost if there are several."""
    for name in (LM_FILE, CONFIG_FILE):
        if found := sorted(root.rglob(name), key=lambda path: len(path.parts)):
            return found[0].parent
    return root


def fetch_model(download: Download, model: str) -> None:
    """Fetch the files of `model` itself."""
    repo = repository(model)
    say_licence(repo.source)
    if ADAPTER_FILE in repo.files:
        download.fetch(repo, {ADAPTER_FILE: ADAPTER_FILE})
        refuse_adapter(download.folder)
    if LM_FILE not in repo.files and CONFIG_FILE in repo.files:
        fetch_transformers_model(download, repo, "")
        if follows_melodies(download.folder):
            download.fetch(repo, {MELODY_SETTINGS: MELODY_SETTINGS})
        return
    download.fetch(repo, {name: name for name in (LM_FILE, CODEC_FILE)})


def fetch_dependencies(download: Download) -> None:
    """Fetch EnCodec, the text encoder and Demucs, as far as the model needs and lacks them."""
    folder = download.folder
    if not (folder / LM_FILE).exists():  # transformers' format contains all but Demucs
        if follows_melodies(folder):
            fetch_demucs(download)
        return
    checkpoint = open_checkpoint(folder)
    if not (folder / CODEC_FILE).exists():
        print(f"{CODEC_FILE} is missing: using {ENCODEC}, as every published MusicGen does")
        torch.save({"pretrained": ENCODEC}, folder / CODEC_FILE)
    codec = read_package(folder / CODEC_FILE)
    if "pretrained" in codec:
        fetch_by_name(download, str(codec["pretrained"]))
    name = checkpoint.text_name
    fetch_by_name(download, name if "/" in name else f"{TEXT_OWNER}/{name}")
    if checkpoint.separates:
        fetch_demucs(download)


def fetch_by_name(download: Download, name: str) -> None:
    """Fetch a model that a configuration names, unless the local folder has it."""
    if not download.has_local(local_name(name)):
        fetch_transformers_model(download, repository(name), local_name(name))


def fetch_transformers_model(download: Download, repo: Repository, folder: str) -> None:
    """Fetch a model in transformers' format, and its tokenizer if it has one, to `folder`."""
    names = [CONFIG_FILE, *repo.weights(), *(n for n in TOKENIZER_FILES if n in repo.files)]
    download.fetch(repo, {f"{folder}/{name}".lstrip("/"): name for name in names})


def fetch_demucs(download: Download) -> None:
    """Fetch Demucs, unless the local folder has it. Its repository's YAML file names the model."""
    if any(download.has_local(name) for name in (DEMUCS_FILE, DEMUCS_TENSORS)):
        return
    name, bag = DEMUCS
    repo = repository(name)
    download.fetch(repo, {bag: bag})
    models = yaml.safe_load((download.folder / bag).read_text()).get("models")
    if not models or len(models) != 1 or not re.fullmatch(r"\w+", str(models[0])):
        raise WeightsError(f"{name}: {bag} names {models}, not one model.")
    download.fetch(repo, {DEMUCS_TENSORS: f"{models[0]}.safetensors"})
    download.sources.pop()  # both files are of one repository


def say_licence(source: Source) -> None:
    """Print the licence before the download starts."""
    print(f"{source.name} at {source.revision}: licence {source.licence}")
    if "nc" in source.licence.lower().split("-"):
        print("These weights and their output are not for commercial use.")
