"""A target larger than its device: the layers that do not fit are streamed through it at every pass."""
