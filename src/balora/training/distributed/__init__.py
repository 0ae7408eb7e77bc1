"""Several processes: which were asked for, what they divide and join, and what happens when one of them dies."""
