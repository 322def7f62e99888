"""Searching for better parameters: spaces, objectives, studies that several processes share."""
