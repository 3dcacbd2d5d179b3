"""``fastattention bench --allreduce``: AllReduce in tiles on ranks, against in sequence and the formula.

`run` is the command, which starts the ranks; `on_rank` what each of them runs; `measure` one case, checked
and then timed; `cases` which there are; `results`, `report` and `plots` what becomes of it.
"""
