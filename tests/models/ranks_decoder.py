"""Greedy tokens of a split model, on every rank. Arguments: file, prompt in tokens, how many to choose."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama
from fastattention.models.parallel import ParallelSession
from fastattention.runtime.communicator import connect

prompt, count = json.loads(sys.argv[2]), int(sys.argv[3])
with connect() as group:
    model = Llama.from_file(ModelFile(Path(sys.argv[1])))
    session = ParallelSession(model, group, context=len(prompt) + count, num_threads=1)
    logits, chosen = session.forward(prompt), []
    for _ in range(count):
        chosen.append(int(logits.argmax()))
        logits = session.forward(chosen[-1:])
    everybody = group.all_gather(chosen)
    assert all(tokens == chosen for tokens in everybody)
    if group.rank == 0:
        sys.stdout.write(json.dumps(chosen) + "\n")
