"""Training: the one loop, objectives, evaluation, saving and reporting."""
