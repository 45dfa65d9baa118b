"""Targets larger than their memory: ours with and without speculation, and accelerate's offloading."""
