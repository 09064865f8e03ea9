"""Ready-made experiments: one module each, which defines ``CONFIG`` and says what to expect of it."""
