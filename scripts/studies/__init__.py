"""Studies: models and methods side by side, on real data and on elliptic equations; run.py runs them."""
