"""Models and runs on disk: safetensors and JSON only, nothing that can execute code when read."""
