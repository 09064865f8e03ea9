"""Benchmarks: jaxop against what a user would pick instead, one file per table; run.py runs them."""
