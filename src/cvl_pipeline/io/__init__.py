"""Files: written atomically, checked on read, on this machine or behind a URL."""
