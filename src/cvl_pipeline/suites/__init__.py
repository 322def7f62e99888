"""Suites: many runs that compare methods, on one machine or a cluster."""
