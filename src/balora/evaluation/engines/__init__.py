"""Engines that generate answers or classify rows."""
