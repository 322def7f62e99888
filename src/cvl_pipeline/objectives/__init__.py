"""From values to policies."""
