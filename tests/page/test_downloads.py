"""Files that the page makes of a clip say that it is AI-generated, like the files of the server."""

import pytest
import torch
from groove import groove
from tags import read_by_others

from musicgen import __version__, audio_file, provenance
from musicgen.generation import Generation
from musicgen.output import save
from musicgen.page import downloads, loops
from musicgen.provenance import CONTINUED, GENERATED
from musicgen.request import Request

RATE = 32000


@pytest.fixture(scope="module")
def generation():
    request = Request(prompt="private words", duration=12, seed=7, top_k=50, output_format="wav")
    return Generation(request, [torch.from_numpy(groove(120).T.copy())], RATE, "tones", "fast")


def saved(generation, path, **options):
    [file] = save(generation, path, **options)
    return file


def a_loop(file):
    loop = loops.find(file, 120.0).found[0]
    return loop, loops.wav(file, loop)


def test_an_mp3_has_all_bytes_of_the_servers(generation, tmp_path):
    wav, mp3 = saved(generation, tmp_path / "a.wav"), saved(generation, tmp_path / "a.mp3")
    assert downloads.mp3(wav) == mp3.read_bytes()


def test_a_loop_says_that_it_is_generated_and_which_part_it_is(generation, tmp_path):
    loop, content = a_loop(saved(generation, tmp_path / "a.wav"))
    found = read_by_others(content)
    software = f"musicgen {__version__}"
    assert found.words == (
        f"AI-generated (trainedAlgorithmicMedia) by {software}; model tones; part loop of 1 bar; "
        "precision fast"
    )
    assert (found.software, found.source) == (software, GENERATED)
    assert found.facts == {
        "software": software,
        "model": "tones",
        "part": f"loop of {loop.bars} bar",
        "digital_source_type": GENERATED,
        "precision": "fast",
    }
    assert b"private" not in content


def test_a_loop_is_not_offered_to_be_made_again(generation, tmp_path):
    _, content = a_loop(saved(generation, tmp_path / "a.wav", tags="full"))
    (tmp_path / "loop.wav").write_bytes(content)
    assert provenance.read(tmp_path / "loop.wav") is None
    assert b"private" not in content


def test_the_digital_source_type_of_a_continuation_is_kept(generation, tmp_path, tune):
    continued = Request(duration=12, input_audio=tune, continuation=True, continuation_end=1)
    made = Generation(continued, generation.wavs, RATE, "tones")
    file = saved(made, tmp_path / "a.wav")
    assert read_by_others(a_loop(file)[1]).source == CONTINUED
    assert read_by_others(downloads.mp3(file)).source == CONTINUED


def test_files_without_tags_get_none(generation, tmp_path):
    file = saved(generation, tmp_path / "a.wav", tags="off")
    for name, content in (("b.mp3", downloads.mp3(file)), ("b.wav", a_loop(file)[1])):
        (tmp_path / name).write_bytes(content)
        assert not {*audio_file.read_metadata(tmp_path / name)} & {*provenance.RECORDS, "comment"}


def test_tags_of_a_newer_server_are_kept(generation, tmp_path):
    """They may have inputs that this version does not know."""
    file = saved(generation, tmp_path / "a.wav")
    newer = file.read_bytes().replace(b'"top_k"', b'"top_9"')
    file.write_bytes(newer)
    assert read_by_others(downloads.mp3(file)).facts["inputs"]["top_9"] == 50
    assert read_by_others(a_loop(file)[1]).source == GENERATED
