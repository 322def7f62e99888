"""Judgement of policies from the log alone, where no environment can run them."""
