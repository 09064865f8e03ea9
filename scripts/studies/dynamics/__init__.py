"""Steppers of equations that move: what they can do, and what makes them good."""
