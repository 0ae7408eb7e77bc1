"""`balora inspect`: the rows of a run as the model sees them, and what is cut, left out or repeated."""
