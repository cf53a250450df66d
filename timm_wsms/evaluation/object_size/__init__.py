"""Accuracy against the size at which the object appears: curves, tables, plots."""
