"""Contrastive learning of the implicit dynamics."""
