"""Honesty checks: whether a run's figures can be believed."""
