"""Turn fastattention.h into the cffi module's C source (run by meson through cffi-gen-src)."""

import re
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).with_name("fastattention.h")


def declarations(header: str) -> str:
    """Return what cffi can parse: everything but preprocessor lines and the extern "C" braces."""
    header = re.sub(r"#ifdef __cplusplus\n.*?#endif\n", "", header, flags=re.DOTALL)
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(declarations(HEADER.read_text(encoding="utf-8")))
# What long calls ask whether to go on: interrupt.py.
ffibuilder.cdef('extern "Python" int32_t fa_python_goes_on(void);')
ffibuilder.set_source("fastattention.cpu_kernels._native", '#include "fastattention.h"')
