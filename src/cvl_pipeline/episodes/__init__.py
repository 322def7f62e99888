"""Episodes: the container, its checks, its preparation and the sampling of segments."""
