"""Faults injected into runs of the pipeline, and what follows them: see docs/reliability.md."""
