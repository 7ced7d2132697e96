"""Tests that need a GPU: captured steps, compiled kernels, accuracy in float16."""

from dataclasses import replace

import pytest
import torch
from sync_debug import waiting_is_an_error

from musicgen.decoder import kernels
from musicgen.decoder.clip import Clip, Conditions, windows
from musicgen.decoder.engine import Engine
from musicgen.decoder.kernels import compiler
from musicgen.decoder.lm import LM, Cache
from musicgen.decoder.pattern import interleave
from musicgen.decoder.sampling import Sampling
from musicgen.decoder.weights import LMConfig, decoder_shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MAX_LENGTH, STRIDE = 100, 60
DELAYS = {4: (0, 1, 2, 3), 8: (0, 0, 1, 1, 2, 2, 3, 3)}


def small_config(cross, n_q=4, dim=256, num_layers=3):
    return LMConfig(
        dim=dim,
        num_heads=dim // 64,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        n_q=n_q,
        card=2048,
        delays=DELAYS[n_q],
        cross_attention=cross,
    )


def random_lm(config, dtype=torch.float16):
    random = torch.Generator("cuda").manual_seed(0)
    state = {}
    for name, shape in decoder_shapes(config).items():
        value = torch.randn(shape, generator=random, device="cuda")
        if len(shape) == 2 and not name.startswith("emb."):
            value *= 1.5 / shape[1] ** 0.5
        state[name] = value if len(shape) == 2 else 0.1 * value + name.endswith("weight")
    return LM.from_audiocraft(config, state, device="cuda", dtype=dtype)


def make_clip(config, seed, *, length=60, prompt=0, given=7, **sampling):
    random = torch.Generator().manual_seed(seed)
    some = torch.randn(2, given, config.dim, generator=random).cuda()
    conditions = Conditions(cross=some) if config.cross_attention else Conditions(prefix=some)
    codes = torch.randint(config.card, (config.n_q, prompt), generator=random).cuda()
    count = len(windows(prompt, length, MAX_LENGTH, STRIDE))
    return Clip(length, seed, Sampling(**sampling), [conditions] * count, codes if prompt else None)


def mixed_clips(config):
    return [
        make_clip(config, 1),
        make_clip(config, 2, length=70, prompt=9, temperature=0.0, given=3),
        make_clip(config, 3, length=150, prompt=20, top_p=0.9, given=30),
        make_clip(config, 4, length=33, top_k=0, cfg_coef=1.0, given=1),
        make_clip(config, 5, length=120, temperature=1.2),
    ]


@pytest.fixture(scope="module", params=["cross", "prepend", "stereo"])
def lm(request):
    return random_lm(small_config(request.param == "cross", 8 if request.param == "stereo" else 4))


def engine(lm, **options):
    return Engine(lm, max_length=MAX_LENGTH, stride=STRIDE, **options)


def expected_ops():
    return kernels.triton_ops(torch.cuda.get_device_capability())


def require_independent_rows():
    """Skip where the products are cuBLAS's, whose rows are only approximately independent."""
    if expected_ops() is not kernels.TRITON:
        pytest.skip("the products are cuBLAS's on this GPU")


SHAPES = {
    "small": kernels.Shape(1024, 4096, 64, 4 * 2048),
    "medium": kernels.Shape(1536, 6144, 64, 4 * 2048),
    "large": kernels.Shape(2048, 8192, 64, 8 * 2048),
}


@pytest.mark.parametrize("rows", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_build_and_agree_with_their_references(shape, rows):
    device = torch.device("cuda")
    chosen = kernels.choose(device, torch.float16, SHAPES[shape], rows)
    assert chosen is expected_ops()


def test_captured_and_eager_steps_give_the_same_codes(lm):
    clips = mixed_clips(lm.config)
    captured, eager = engine(lm), engine(lm, eager=True)
    for batch in (clips[:1], clips, clips[2:4]):
        for ours, theirs in zip(captured.generate(batch), eager.generate(batch), strict=True):
            assert torch.equal(ours, theirs)


def test_codes_do_not_depend_on_the_other_clips_in_the_batch(lm):
    require_independent_rows()
    made, clips = engine(lm), mixed_clips(lm.config)
    alone = [made.generate([one])[0] for one in clips]
    # Up to 16 rows, then 64: tiles of both sizes.
    for batch in (clips[::-1], clips, (clips * 7)[:32]):
        for asked, codes in zip(batch, made.generate(batch), strict=True):
            assert torch.equal(codes, alone[clips.index(asked)])


def test_codes_with_a_shared_prefix_do_not_depend_on_the_other_clips():
    require_independent_rows()
    config = small_config(cross=False, n_q=8)
    shared = torch.randn(150, config.dim, device="cuda")
    made = engine(random_lm(config), shared_prefix=shared)
    clips = mixed_clips(config)
    for index, one in enumerate(clips[:4]):
        first = one.conditions[0].prefix
        if index % 2:  # the conditional row begins with something else
            begin, alike = torch.stack([shared.flip(0), shared]), (0, len(shared))
        else:
            begin, alike = torch.stack([shared, shared]), (len(shared), len(shared))
        given = Conditions(prefix=torch.cat([begin, first], dim=1), shared=alike)
        clips[index] = replace(one, conditions=[given] * len(one.conditions))
    alone = [made.generate([one])[0] for one in clips]
    for batch in (clips[::-1], (clips * 7)[:32]):
        for asked, codes in zip(batch, made.generate(batch), strict=True):
            assert torch.equal(codes, alone[clips.index(asked)])


def test_overlapping_launches_give_the_same_codes(lm, monkeypatch):
    if torch.cuda.get_device_capability()[0] < compiler.HOPPER:
        pytest.skip("overlapping launches need Hopper or later")
    clips = mixed_clips(lm.config)
    expected = [engine(lm).generate(batch) for batch in (clips[:1], clips * 6)]
    monkeypatch.setattr(compiler, "DEPENDENT", True)
    made = engine(lm)
    for _ in range(3):
        for batch, theirs in zip((clips[:1], clips * 6), expected, strict=True):
            for ours, codes in zip(made.generate(batch), theirs, strict=True):
                assert torch.equal(ours, codes)


def test_codes_are_within_range(lm):
    for codes in engine(lm).generate(mixed_clips(lm.config)):
        assert codes.min() >= 0
        assert codes.max() < lm.config.card


def test_decoding_does_not_wait_for_the_gpu(lm):
    made, clips = engine(lm), [make_clip(lm.config, 1), make_clip(lm.config, 2, length=130)]
    made.generate(clips)
    with waiting_is_an_error():
        made.generate(clips)


def test_an_exception_from_progress_leaves_the_engine_usable(lm):
    made, clips = engine(lm), mixed_clips(lm.config)
    expected = made.generate(clips[:1])[0]

    def cancel(done, total):
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.generate(clips, cancel)
    assert torch.equal(made.generate(clips[:1])[0], expected)


def test_warm_up_captures_what_the_first_request_needs(lm):
    made = engine(lm)
    made.warm_up()
    graphs = {size: step.graph for size, (_, step) in made.decode_steps.captured.items()}
    made.generate([make_clip(lm.config, 1)])
    assert {size: step.graph for size, (_, step) in made.decode_steps.captured.items()} == graphs


def test_a_batch_decodes_without_triton(lm):
    made = engine(lm, ops=kernels.TORCH)
    clips = mixed_clips(lm.config)
    for asked, codes in zip(clips, made.generate(clips), strict=True):
        assert codes.shape == (lm.config.n_q, asked.length)
        assert codes.min() >= 0


def forced_logits(lm, ops, sequence, given):
    """Logits [2, K, S, card] of a sequence [K, S], step by step."""
    prefix, length = given.shape[1], sequence.shape[1]
    cross = lm.config.cross_attention
    cache = Cache.empty(lm, 2, prefix + length, prefix)
    for _ in lm.prefill(
        sequence[:, :0].T, None if cross else given, given if cross else None, cache
    ):
        pass
    table, logits = lm.positions(prefix + length), []
    for column in range(length):
        position = column + (0 if cross else prefix)
        x = (lm.embed(sequence[:, column]) + table[position]).repeat(2, 1)
        positions = torch.full((2,), position, device="cuda")
        rows = torch.arange(2, device="cuda")
        logits.append(lm.step(x, rows, positions, cache, ops).float())
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("cross", [True, False], ids=["cross", "prepend"])
def test_fp16_is_as_near_to_float32_as_audiocrafts(cross):
    tiny_lm = pytest.importorskip("tiny_lm", reason="needs audiocraft")
    config = small_config(cross, dim=512, num_layers=6)
    oracle = tiny_lm.oracle_lm(config, half=True).cuda()
    state = oracle.state_dict()
    half_oracle = tiny_lm.oracle_lm(config, half=True, dtype=torch.float16).cuda()
    half_oracle.load_state_dict(state)
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(config.card, (config.n_q, 200), generator=random).cuda()
    sequence = interleave(codes, config.delays, config.card)
    given = torch.randn(2, 7, config.dim, generator=random).cuda()
    tensors = {"description": (given, torch.ones(2, 7, device="cuda"))}
    lm = LM.from_audiocraft(config, state, device="cuda", dtype=torch.float16)

    with torch.no_grad():
        exact = oracle(sequence.expand(2, -1, -1), [], tensors)
        ours = forced_logits(lm, expected_ops(), sequence, given)
        with torch.autocast("cuda", dtype=torch.float16):
            theirs = half_oracle(sequence.expand(2, -1, -1), [], tensors).float()
    assert (ours - exact).pow(2).mean() <= 1.1 * (theirs - exact).pow(2).mean()
