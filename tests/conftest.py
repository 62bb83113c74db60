"""Fixtures for all tests."""

pytest_plugins = ["tests.conftest_kafka"]
