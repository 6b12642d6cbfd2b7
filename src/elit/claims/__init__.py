"""The paper's claims, tried at a small scale: what is trained, what is compared, and what came of it."""
