"""Sources of episodes: simulators, published datasets and your own logs."""
