"""Methods: what trains a policy from episodes and rewards, CVL and its rivals, one file each."""
