"""Loss functions: pure functions of tensors that return (loss, metrics)."""
