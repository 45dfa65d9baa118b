"""What a role counts of itself, and the HTTP endpoint where Prometheus reads it."""
