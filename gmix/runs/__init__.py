"""What a run leaves on disk: checkpoints, results, trackers, progress, the saved model and its card."""
