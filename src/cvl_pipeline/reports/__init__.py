"""Statistics and pictures of results."""
