"""What is done with a finished model: evaluate, predict, pseudo-label, export. Needs no trainer."""
