"""Command line: text on the screen, and nothing else."""
