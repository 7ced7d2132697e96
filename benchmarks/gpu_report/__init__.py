"""scripts/gpu-report: tests and measures this engine on a GPU, in stages with time limits.

`runner` starts each stage as a process; `stages` lists them; `record` writes one JSON line per
result. The stages need only torch, Triton and pytest; `stage` runs one of them.
"""
