"""Orchestration: config, run folders and the walk through the three stages."""

__version__ = "0.1.0"
