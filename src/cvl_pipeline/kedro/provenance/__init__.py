"""What made each artifact, and whether that would make the same again: records, states, locks."""
