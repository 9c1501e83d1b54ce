"""Decoding: from a prompt to text, with a key-value cache and the usual ways to sample."""
