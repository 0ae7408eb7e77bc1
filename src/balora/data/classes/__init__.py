"""Classes: labels in their many spellings, the classes of a head, rows without a label, words for classes."""
