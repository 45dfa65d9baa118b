"""Traces of requests over all roles; OpenTelemetry is not loaded while they are off."""
