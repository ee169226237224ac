"""Configuration: options, dataclasses, flags, YAML and recipes, and the files and networks they name."""
