"""Offline reinforcement learning without TD learning: Contrastive Value Learning as a Kedro pipeline."""

__version__ = "0.1.0"
