"""Builders of data sets, batches, networks and methods from a configuration."""
