"""Peers for ``benchmarks.speed``: one script per peer, each in its own environment."""
