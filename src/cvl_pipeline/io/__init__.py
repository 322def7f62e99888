"""Files: written atomically, verified on read, local or behind a URL."""
