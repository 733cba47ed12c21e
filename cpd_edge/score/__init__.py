"""Importance per unit: what the loss is expected to rise by when a unit goes."""
