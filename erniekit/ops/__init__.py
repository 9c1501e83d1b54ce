"""Numerics: pure functions over tensors. See backend.py for how one is chosen."""
