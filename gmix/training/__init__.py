"""The trainer: a `Session` (all it works with), `fit` (the loop), a `Recorder` (all it writes), and `train`."""
