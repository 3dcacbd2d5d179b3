# The compiled extension, for type checkers: cffi's objects have no types of their own.
from typing import Any

ffi: Any
lib: Any
