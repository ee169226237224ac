"""From what was said to what is trained: data sets, batches, network and method."""
