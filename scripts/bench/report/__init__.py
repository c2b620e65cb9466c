"""Figures of `scripts.bench.contest` as a page and charts: `python -m scripts.bench --report FOLDER FILES`"""
