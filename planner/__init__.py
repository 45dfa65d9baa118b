"""Planner: measures the hardware and the agreement of the models, and decides the trees."""
