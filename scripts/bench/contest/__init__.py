"""Engines side by side, each setting measured by turns: `python -m scripts.bench.contest --help`."""
