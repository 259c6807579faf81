"""Hypothesis profiles for all tests, chosen by the environment variable HYPOTHESIS_PROFILE.

    ci        the default: the same examples on every run, 100 per test unless it says otherwise
    thorough  ten times as many, drawn anew on every run

A test that wants more or fewer states them as a multiple of ``settings.default.max_examples``,
which both profiles then scale.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_ALIKE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **_ALIKE)
settings.register_profile("thorough", max_examples=1000, derandomize=False, **_ALIKE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
