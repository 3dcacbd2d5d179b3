"""Faults on ranks. Argument: which."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from fastattention.runtime.communicator import connect
from fastattention.runtime.tensor_parallel import projected_attention

fault = sys.argv[1]
group = connect()
xp = group.xp
last = group.rank == group.size - 1
q = xp.ones((1, 2, 5, 4), np.float32)
w_out = xp.ones((8, 3), np.float32)


def say(*words):
    """Print a line in one piece, among those of other ranks."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def refused(*arguments, **options):
    """Return the ValueError's text; None where there is none."""
    try:
        projected_attention(*arguments, group, **options)
    except ValueError as error:
        return str(error)
    return None


if fault == "shapes":  # the last rank has a longer sequence
    mine = xp.ones((1, 2, 6, 4), np.float32) if last else q
    say("refused:", refused(mine, mine, mine, w_out))
elif fault == "dtypes":
    kind = np.float16 if last else np.float32
    say("refused:", refused(*(x.astype(kind) for x in (q, q, q, w_out))))
elif fault == "options":
    say("refused:", refused(q, q, q, w_out, causal=last))
elif fault == "blocks":  # one rank alone asks for more blocks than rows
    say("refused:", refused(q, q, q, w_out, blocks=6 if last else 2))
elif fault == "raises":  # the others wait for a sum that does not come
    if last:
        raise RuntimeError("out of luck")
    projected_attention(q, q, q, w_out, group)
elif fault == "dies":
    if last:
        os._exit(7)
    projected_attention(q, q, q, w_out, group)
elif fault == "exits":
    if last:
        sys.exit(3)
    group.barrier()
elif fault == "waits":
    say(f"pid {os.getpid()}")
    time.sleep(120)
