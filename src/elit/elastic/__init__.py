"""The elastic latent interface: windows, levels, Read, Write and the latent core. Imports torch only."""
