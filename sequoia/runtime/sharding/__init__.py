"""A target that is spread over several processes, each with a device and a shard of every layer."""
