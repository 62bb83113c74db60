"""The HTTP endpoint of each end: health, readiness, metrics and status."""
