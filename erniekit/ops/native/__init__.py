"""Operators of the native kernels: the Python side, one file for each family of operators."""
