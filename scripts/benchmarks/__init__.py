"""Benchmarks: jaxop against the usual alternatives, one file per table; run.py runs them."""
