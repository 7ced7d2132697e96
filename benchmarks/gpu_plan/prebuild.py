"""Compiles a model's kernels for a GPU that need not be there, into Triton's cache folder.

    python -m benchmarks.gpu_plan.prebuild --model stereo-melody-large --capability 90 --slots 31

A server with this cache folder then compiles only the kernels of its self-test. The cache belongs
to one version of Triton and Python: run this in the image that will serve.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.gpu_plan.launches import step_launches
from benchmarks.gpu_plan.recorder import SHARED_MEMORY, Code
from benchmarks.work import MELODY, PUBLISHED
from musicgen.conditioning.conditioner import MAX_TOKENS
from musicgen.decoder.decode_steps import BATCHES
from musicgen.decoder.kernels.compiler import triton


def main() -> None:
    """Compile the kernels of all batch sizes."""
    parser = argparse.ArgumentParser(
        description="Compile a model's Triton kernels for a GPU that need not be there."
    )
    parser.add_argument("--model", choices=PUBLISHED, required=True)
    parser.add_argument("--capability", type=int, nargs="+", choices=SHARED_MEMORY, required=True)
    parser.add_argument(
        "--slots", type=int, default=BATCHES[-1], help="as the server logs at start"
    )
    options = parser.parse_args()
    if triton is None:
        # Without a GPU, Triton is only imported if TRITON_INTERPRET is set at process start.
        if "TRITON_INTERPRET" in os.environ:
            raise SystemExit("Triton is not installed")
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    for capability in options.capability:
        start = time.perf_counter()
        codes = step_codes(options.model, capability, options.slots)
        build(codes, capability)
        seconds = time.perf_counter() - start
        print(f"{options.model}, sm_{capability}: {len(codes)} kernels in {seconds:.0f} s")


def step_codes(model: str, capability: int, slots: int) -> list[Code]:
    """Returns the different kernels of the steps that a server with this many slots captures."""
    # All layers launch the same kernels.
    config = replace(PUBLISHED[model], num_layers=1)
    melody = 0 if config.cross_attention else MELODY
    sizes = [size for size in BATCHES if size < slots] + [slots]
    launches = [
        launch
        for tokens in MAX_TOKENS
        for clips in sizes
        for launch in step_launches(config, clips, capability, slots=slots, prefix=tokens + melody)
    ]
    return list({str(launch.code): launch.code for launch in launches if launch.code}.values())


def build(codes: Iterable[Code], capability: int) -> None:
    """Compile kernels in parallel; ptxas, half of the work, is a process of its own."""
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)

    def compile_one(code: Code) -> None:
        source = triton.compiler.ASTSource(
            code.kernel, code.signature, code.constants, code.attributes
        )
        triton.compile(source, target=target, options=code.options)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, codes))


if __name__ == "__main__":
    main()
