"""The forward and the loss of a micro-batch, for each kind of task."""
