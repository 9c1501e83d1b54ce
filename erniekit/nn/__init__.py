"""Layers on one device, made from flat arguments; what is not architecture is applied from outside."""
