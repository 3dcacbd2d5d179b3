"""``fastattention bench --errors``: how far each CPU kernel is from float64, beside the bound and PyTorch.

`cases` says which problems and of what kind their numbers are, `measure` computes and judges one, `peer` is
PyTorch on the same arrays, `results` and `report` are what becomes of it, `run` is the command.
"""
