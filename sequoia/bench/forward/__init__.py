"""One pass of either model against its limit, by number of nodes, batch and prefix."""
