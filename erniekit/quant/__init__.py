"""Quantisation: applied to a model from outside, it changes how numbers are represented."""
