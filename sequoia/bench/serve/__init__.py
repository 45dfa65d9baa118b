"""The service under load: throughput and latency as clients see them."""
