"""New checkpoints from old ones: changes of size, made in a new folder and never in place."""
