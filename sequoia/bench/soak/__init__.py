"""The service under mixed load for long: what its processes hold, and what is left behind."""
