"""Figures drawn with matplotlib, shared by reports and experiments."""
