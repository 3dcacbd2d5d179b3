"""CUDA kernels for Volta and its neighbours, compiled by CuPy at run time.

The kernels are not part of this version; ``fastattention.attention(..., backend="gpu")`` says so.
"""
