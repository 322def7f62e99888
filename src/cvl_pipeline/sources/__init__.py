"""Where episodes come from: simulators, published datasets, people's own logs; all fill one container."""
