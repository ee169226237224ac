"""The trainer: a `Session` (its inputs and state), `fit` (the loop), a `Recorder` (its output), and `train`."""
