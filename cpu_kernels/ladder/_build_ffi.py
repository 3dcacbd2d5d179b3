"""Turn ladder.h into the cffi module's C source (run by meson through cffi-gen-src)."""

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
declarations = runpy.run_path(str(HERE.parent / "_build_ffi.py"))["declarations"]

ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "ladder.h").read_text(encoding="utf-8")))
ffibuilder.set_source("fastattention.cpu_kernels.ladder._ladder", '#include "ladder.h"')
