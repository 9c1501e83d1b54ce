"""Configuration: YAML and overrides to frozen dataclasses. Needs no Paddle."""
