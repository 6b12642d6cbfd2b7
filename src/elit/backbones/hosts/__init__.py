"""Transformers of diffusers, unmodified, made elastic in place."""
