"""Adapters: applied to a model from outside, they change which parameters exist. One file each."""
