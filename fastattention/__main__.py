"""``python -m fastattention``: the same as the command ``fastattention``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
