"""Coordinator: the truth of every request; grow, verify, accept, emit."""
