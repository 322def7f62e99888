"""Modules alone: no training, no data."""
