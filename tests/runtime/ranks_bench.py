"""The table of `fastattention.bench.allreduce`. Arguments: hidden, rows, dtype, [file for JSON].

fastattention launch -n 2 --gpus tests/runtime/ranks_bench.py 8192 16384 float16
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from fastattention.bench.allreduce import as_json, operands, table, text
from fastattention.runtime.communicator import connect

hidden, rows, dtype = int(sys.argv[1]), int(sys.argv[2]), np.dtype(sys.argv[3])
with connect() as group:
    found = table(group, *operands(group, hidden, rows, dtype=dtype))
    if group.rank == 0:
        sys.stdout.write(f"hidden {hidden}, {rows} rows, {dtype}, {group.size} ranks\n{text(*found)}\n")
        if len(sys.argv) > 4:
            Path(sys.argv[4]).write_text(json.dumps(as_json(*found), indent=1) + "\n")
