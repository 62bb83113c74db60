"""Fixtures and settings for all tests."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.conftest_kafka"]

# A run says the same thing twice, however busy the machine is: no deadlines, and examples that depend only on the test.
# HYPOTHESIS_PROFILE=search looks for new ones; what it finds is pinned as a scenario.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
