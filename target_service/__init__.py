"""Target worker: checks token trees with the target model."""
