"""What every test shares: time is no reason to fail, here or on a busy machine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Continuous integration repeats one sequence of examples, so that a change is judged by what it changes; everywhere
# else every run draws new ones.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("house")
