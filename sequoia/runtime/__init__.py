"""What runs a model: catalogue, loading, tree passes, KV cache, sessions and the device thread."""
