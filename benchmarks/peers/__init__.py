"""Whom training is timed against (``benchmarks.speed``), a script each, in an environment of its own."""
