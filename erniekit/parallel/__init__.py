"""Where and when a model is computed, never what: applied to it from outside."""
