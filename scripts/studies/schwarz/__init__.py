"""Two-level Schwarz attention as an operator that solves elliptic equations: the tables, one file per question."""
