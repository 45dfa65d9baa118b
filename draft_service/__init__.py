"""Draft worker: grows token trees with the draft model."""
