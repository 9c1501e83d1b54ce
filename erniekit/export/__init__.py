"""Finished models: another layout, another number format, other shards, and the proof that they are right."""
