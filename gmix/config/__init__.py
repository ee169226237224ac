"""What a user can say: options, their dataclasses, flags, YAML, recipes, and which files and networks those name."""
