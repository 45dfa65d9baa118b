"""Seconds per token of ours and of others, on the same prompts, weights, precision and threads."""
