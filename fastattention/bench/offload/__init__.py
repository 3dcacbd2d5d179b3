"""``fastattention bench --offload``: a cache in host memory, and who attends to it.

`cases` says which rows there are, `limits` what the machine can do at most, `arena` where the caches of all
ways lie, `machine` puts runtime, planner and decoder together for a row, `measure` checks each way and
takes its times, `hugging_face` is the peer, `targets` holds rows to what cooperation is meant to reach,
`results`, `report` and `plots` tell of it, `run` is the command. `long_run`, with `sampler`, is a benchmark
of its own: a context that the GPU's memory cannot hold, from the first prompt token to the last decoded
one.
"""
