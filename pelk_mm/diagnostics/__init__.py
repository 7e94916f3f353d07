"""Find the problems of an environment or a checkpoint, and their fixes."""
