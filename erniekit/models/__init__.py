"""One folder a family: config.py (its numbers), model.py, weights.py (name maps), plan.py (data)."""
