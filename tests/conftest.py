"""How property tests run: the same cases every time, and no limit on the clock of a busy machine.

`HYPOTHESIS_PROFILE=search pytest` looks for new cases instead.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
