"""``fastattention bench --gpu``: the CUDA kernels against this card's limits and against PyTorch.

`cases` says which rows there are, `data` what lies in their arrays, `contenders` and `pytorch` who does them,
`check` what is right, `clock` how calls are timed, `card` puts these together on a GPU; `measure` takes a row
through its rounds on any such device (the tests have one without a GPU), `targets` holds it to what the
kernels are meant to reach, `results`, `report` and `plots` tell of it, `run` is the command.
"""
