"""Native code: its sources, how they are compiled, and the loaded library."""
