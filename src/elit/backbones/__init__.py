"""Hosts of the latent core, and their names."""
