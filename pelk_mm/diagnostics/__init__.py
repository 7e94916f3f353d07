"""Find what is wrong with an environment or a checkpoint, and how to fix it."""
