"""Shared foundations: atomic file writes, devices, processes, signals and console output."""
