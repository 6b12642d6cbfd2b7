"""Images to train on and to compare with."""
