"""The same problems through every backend and every instruction set."""
