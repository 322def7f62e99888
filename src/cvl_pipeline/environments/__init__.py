"""Environments, collection and evaluation."""
