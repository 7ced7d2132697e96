"""Diffusion: audiocraft's numbers, stereo by channel, nothing but a clip's codes and seed in it."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from audiocraft.models import MultiBandDiffusion as Oracle
from audiocraft.models.builders import get_compression_model, get_diffusion_model, get_processor
from audiocraft.models.multibanddiffusion import DiffusionProcess
from audiocraft.modules.diffusion_schedule import NoiseSchedule
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from musicgen.checkpoints import tiny, tiny_config
from musicgen.checkpoints.checkpoint import CODEC_FILE, DIFFUSION_FILE, open_checkpoint
from musicgen.errors import InputError, WeightsError
from musicgen.pipeline import MusicGen
from musicgen.rendering import diffusion
from musicgen.rendering.codec import Codec
from musicgen.rendering.diffusion import EQUALIZER_BANDS, MultiBandDiffusion
from musicgen.request import Request

CPU = torch.device("cpu")
HOP = 640
FRAMES = 20


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The models are far too small to share between threads, which would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A mono and a stereo checkpoint with the same EnCodec, both with diffusion."""
    made = {}
    for kind in ("text", "stereo"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny.write_checkpoint(made[kind], kind)
        tiny.write_diffusion(made[kind])
    shutil.copy(made["text"] / CODEC_FILE, made["stereo"])
    return made


def load(folder):
    checkpoint = open_checkpoint(folder)
    return MultiBandDiffusion(checkpoint, Codec(checkpoint, CPU), CPU)


@pytest.fixture(scope="module")
def mono(folders):
    return load(folders["text"])


@pytest.fixture(scope="module")
def stereo(folders):
    return load(folders["stereo"])


def draw(*shape):
    return torch.randint(tiny_config.CARD, shape, generator=torch.Generator().manual_seed(5))


def interleave(left, right):
    """[B, K, T] twice -> [B, 2 K, T] in the order left, right of each codebook."""
    return torch.stack([left, right], dim=2).flatten(1, 2)


def read(path):
    return torch.load(path, weights_only=False)


def oracle(folder):
    """audiocraft's own, from the same files by what `get_mbd_musicgen` does."""
    package = read(folder / CODEC_FILE)
    codec = get_compression_model(OmegaConf.create(package["xp.cfg"]))
    codec.load_state_dict(package["best_state"])
    package = read(folder / DIFFUSION_FILE)
    processes = []
    for index in range(package["n_bands"]):
        config = package[index]["cfg"]
        model = get_diffusion_model(config)
        model.load_state_dict(package[index]["model_state"])
        processor = get_processor(config.processor, package["sample_rate"])
        processor.load_state_dict(package[index]["processor_state"])
        schedule = NoiseSchedule(**config.schedule, sample_processor=processor, device="cpu")
        processes.append(DiffusionProcess(model.eval(), schedule))
    return Oracle(processes, codec.eval())


def test_mono_equals_audiocraft(folders, mono):
    codes = draw(1, 4, FRAMES)
    theirs = oracle(folders["text"])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        expected = theirs.tokens_to_wav(codes)
    actual = mono.decode(codes, [7])
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_output_is_finite_float32_and_as_long_as_the_codes(mono, stereo):
    for decoder, channels in ((mono, 1), (stereo, 2)):
        wav = decoder.decode(draw(2, 4 * channels, FRAMES), [0, 2**32 - 1])
        assert wav.shape == (2, channels, FRAMES * HOP)
        assert wav.dtype == torch.float32
        assert wav.device == CPU
        assert torch.isfinite(wav).all()


def test_stereo_channels_are_what_mono_makes_of_their_codes(mono, stereo):
    left, right = draw(2, 1, 4, FRAMES)
    wav = stereo.decode(interleave(left, right), [3])
    for channel, codes in enumerate((left, right)):
        expected = mono.decode(codes, [3])[:, 0]
        torch.testing.assert_close(wav[:, channel], expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(wav[:, 0], wav[:, 1], atol=1e-3)


def test_equal_codes_left_and_right_stay_in_the_middle(stereo):
    codes = draw(1, 4, FRAMES)
    left, right = stereo.decode(interleave(codes, codes), [3])[0]
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_seed_reproducibility(mono):
    codes = draw(1, 4, FRAMES)
    first, again, other = (mono.decode(codes, [seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_clip_does_not_depend_on_its_neighbours(stereo):
    codes = draw(3, 8, FRAMES)
    batch = stereo.decode(codes, [4, 5, 6])
    for index in range(3):
        alone = stereo.decode(codes[index, None], [4 + index])
        assert torch.equal(batch[index], alone[0])


def test_global_generators_are_untouched_and_unused(mono):
    codes = draw(1, 4, FRAMES)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mono.decode(codes, [1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(mono.decode(codes, [1]), first)


def test_progress_names_each_band_and_its_failure_leaves_the_decoder_usable(mono, monkeypatch):
    codes = draw(1, 4, FRAMES)
    expected = mono.decode(codes, [1])
    names = []

    class CancelledError(Exception):
        """As raised by a server that gave the prediction up."""

    class Bar(diffusion.tqdm):
        def __init__(self, **arguments):
            names.append(arguments["desc"])
            super().__init__(**arguments)

        def update(self, n=1):
            if len(names) == 3:
                raise CancelledError
            return super().update(n)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion, "tqdm", Bar)
        with pytest.raises(CancelledError):
            mono.decode(codes, [1])
    assert names == [f"diffusion band {number}/4" for number in (1, 2, 3)]
    assert torch.equal(mono.decode(codes, [1]), expected)


def test_silent_codec_gives_silence_and_not_nan(mono):
    silence = torch.zeros(1, 1, FRAMES * HOP)
    noise = torch.randn(silence.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mono._equalize(noise, silence), silence)
    assert torch.equal(mono._equalize(silence, noise), silence)


def test_equalizer_matches_each_band_of_each_channel(mono):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 32000, generator=generator)
    reference = torch.randn(2, 1, 32000, generator=generator).cumsum(-1) * 0.01
    reference[1] *= 0.1
    levels = mono.split(mono._equalize(noise, reference)).std(dim=(2, 3))
    expected = mono.split(reference).std(dim=(2, 3))
    assert levels.shape == (EQUALIZER_BANDS, 2)
    # Neighbouring bands overlap, so the match is close and not exact.
    assert float((levels / expected).log2().abs().median()) < 0.2


def test_missing_weights_are_reported_before_anything_runs(folders, tmp_path, monkeypatch):
    for name in (path.name for path in folders["text"].iterdir() if path.name != DIFFUSION_FILE):
        (tmp_path / name).symlink_to(folders["text"] / name)
    model = MusicGen(open_checkpoint(tmp_path), CPU)

    def fail(*_arguments):
        raise AssertionError("generation started")

    monkeypatch.setattr(model, "_prepare", fail)
    monkeypatch.setattr(model.engine, "generate", fail)
    with pytest.raises(InputError) as caught:
        model.generate(Request(prompt="x", duration=1, multi_band_diffusion=True))
    assert caught.value.field == "multi_band_diffusion"
    for part in (
        "multi_band_diffusion=True",
        DIFFUSION_FILE,
        "scripts/weights pull",
        "--diffusion",
    ):
        assert part in str(caught.value)


def test_pipeline_decodes_by_diffusion_and_loads_it_once(folders):
    model = MusicGen(open_checkpoint(folders["stereo"]), CPU)
    plain = Request(prompt="x", duration=0.4, seed=1)
    by_codec = model.generate(plain).wavs[0]
    assert "diffusion" not in vars(model)
    request = Request(prompt="x", duration=0.4, seed=1, multi_band_diffusion=True)
    by_diffusion = model.generate(request).wavs[0]
    loaded = model.diffusion
    assert torch.equal(model.generate(request).wavs[0], by_diffusion)
    assert model.diffusion is loaded
    assert by_diffusion.shape == by_codec.shape == (2, FRAMES * HOP)
    assert not torch.allclose(by_codec, by_diffusion, atol=1e-3)


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


class Planted(dict):
    """A state of its own class, which may not be in the file."""


@pytest.mark.parametrize("place", ["top", "configuration", "state"])
def test_pickled_code_is_refused_and_not_run(folders, tmp_path, place):
    trace = tmp_path / "trace"
    package = read(folders["text"] / DIFFUSION_FILE)
    if place == "top":
        package["extra"] = Payload(trace)
    elif place == "configuration":
        config = OmegaConf.create({"value": None}, flags={"allow_objects": True})
        config.value = Payload(trace)
        package[0]["cfg"] = config
    else:
        package[0]["model_state"] = Planted(package[0]["model_state"])
    path = tmp_path / DIFFUSION_FILE
    torch.save(package, path)
    if place != "state":
        pickle.loads(pickle.dumps(Payload(trace)))
        assert trace.exists(), "the payload would work"
        trace.unlink()
    codec = Codec(open_checkpoint(folders["text"]), CPU)
    with pytest.raises(WeightsError, match=r"never executed"):
        diffusion.load_bands(path, codec, CPU)
    assert not trace.exists()


def _wider(package):
    package[1]["cfg"].diffusion_unet.codec_dim = 128


def _other_rate(package):
    package["sample_rate"] = 24000


def _no_band(package):
    del package[3]


def _no_parameter(package):
    package[2]["model_state"].popitem()


def _no_schedule(package):
    del package[0]["cfg"]["schedule"]


@pytest.mark.parametrize("spoil", [_wider, _other_rate, _no_band, _no_parameter, _no_schedule])
def test_a_file_that_does_not_fit_is_reported_by_name(folders, tmp_path, spoil):
    package = read(folders["text"] / DIFFUSION_FILE)
    spoil(package)
    path = tmp_path / DIFFUSION_FILE
    torch.save(package, path)
    codec = Codec(open_checkpoint(folders["text"]), CPU)
    with pytest.raises(WeightsError, match=DIFFUSION_FILE):
        diffusion.load_bands(path, codec, CPU)


def test_allow_list_holds_no_name_that_files_do_not_need(folders):
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(folders["text"] / DIFFUSION_FILE)
    allowed = {
        item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__name__}"
        for item in diffusion.CONFIGURATION
    }
    assert allowed == set(needed)


def test_tiny_diffusion_is_always_the_same_and_leaves_the_generator(folders, tmp_path):
    before = torch.get_rng_state()
    tiny.write_diffusion(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    written = (tmp_path / DIFFUSION_FILE).read_bytes()
    assert written == (folders["text"] / DIFFUSION_FILE).read_bytes()


def test_a_clip_in_windows_sounds_like_one_at_once(mono, monkeypatch):
    """Only the normalization's statistics reach further than the overlap: 35 dB below the sound.

    With longer windows it is less: 38 dB with 2 s, 43 with 4 s.
    """
    codes = draw(1, 4, 100)
    whole = mono.decode(codes, [1])
    monkeypatch.setattr(diffusion, "WINDOW", 60)
    monkeypatch.setattr(diffusion, "OVERLAP", 20)
    cut = mono.decode(codes, [1])
    assert cut.shape == whole.shape
    assert not torch.equal(cut, whole)
    assert float((cut - whole).std() / whole.std()) < 10 ** (-30 / 20)


def test_the_equalizer_in_pieces_does_the_same(mono, monkeypatch):
    wav, reference = torch.randn(2, 2, 1, 50_000).cumsum(-1) / 100
    whole = mono._equalize(wav, reference)
    monkeypatch.setattr(diffusion, "PIECE", 12_345)
    torch.testing.assert_close(mono._equalize(wav, reference), whole, rtol=1e-4, atol=1e-5)


def test_the_processor_in_pieces_does_the_same(mono, monkeypatch):
    wav = torch.randn(2, 1, 50_000).cumsum(-1) / 100
    whole = [band.restore(wav) for band in mono.bands]
    monkeypatch.setattr(diffusion, "PIECE", 12_345)
    for band, expected in zip(mono.bands, whole, strict=True):
        torch.testing.assert_close(band.restore(wav), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_sounds_like_full(folders):
    """Same noise on both devices: the estimates' fp16 stays 40 dB below the sound."""
    checkpoint = open_checkpoint(folders["stereo"])
    device = torch.device("cuda")
    codes = draw(1, 8, FRAMES)
    with torch.inference_mode():
        wavs = []
        for where in (CPU, device):
            decoder = MultiBandDiffusion(checkpoint, Codec(checkpoint, where), where)
            clip = decoder._begin(codes[0], 3)
            noise = torch.Generator().manual_seed(3)
            for band in decoder.bands:
                length = clip.reference.shape[-1]
                clip.wav += band.sample(clip.condition, length, noise, lambda: None)
            wavs.append(decoder._equalize(clip.wav, clip.reference).cpu())
    error = (wavs[1] - wavs[0]).std() / wavs[0].std()
    assert float(error) < 0.01


def test_configurations_that_hydra_composed_are_read(folders, mono, tmp_path):
    """Upstream's are, and hydra leaves the resolved date of its folder in the root's cache."""
    package = read(folders["text"] / DIFFUSION_FILE)
    for index in range(package["n_bands"]):
        name = f"band-{index}"
        OmegaConf.save(package[index]["cfg"], tmp_path / f"{name}.yaml")
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            config = compose(name, return_hydra_config=True)
        assert "outputs" in config.hydra.run.dir
        with open_dict(config):
            del config["hydra"]
        assert config._metadata.resolver_cache["now"]
        package[index]["cfg"] = config
    folder = shutil.copytree(folders["text"], tmp_path / "composed")
    torch.save(package, folder / DIFFUSION_FILE)
    codes = draw(1, 4, FRAMES)
    assert torch.equal(load(folder).decode(codes, [3]), mono.decode(codes, [3]))
