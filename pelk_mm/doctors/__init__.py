"""What is wrong with a checkpoint or an environment, and the cure."""
