"""From the dynamics and rewards to values."""
