"""Benchmarks: decoding speed against the memory bandwidth and against other implementations.

`work` defines what is decoded, `systems` the implementations compared, `measure` the timing,
`machine` the hardware's limits, `report` the tables and saved results. `callers` and `soak` load a
real server. `gpu_plan` predicts a decode step on GPUs, `gpu_report` measures everything on one.
"""
