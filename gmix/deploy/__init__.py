"""Uses of a trained model: evaluate, predict, pseudo-label, export. Independent of the trainer."""
