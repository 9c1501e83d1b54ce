"""Configuration: YAML or JSON and overrides in, strict frozen dataclasses out; imports no Paddle."""
