"""Helpers for tests: finite MDPs with exact values, and builders of small data."""
