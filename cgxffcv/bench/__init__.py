"""Benchmarks: `python -m cgxffcv bench NAME`."""
