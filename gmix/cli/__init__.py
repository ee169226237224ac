"""The command line: words on the screen, and nothing else."""
