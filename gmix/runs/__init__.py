"""Files of a run: checkpoints, results, trackers, progress, the saved model and its card."""
