"""Attention as an operator between function spaces."""
