"""Making a draft that agrees with its target: the target writes, a cut-down copy of it learns."""
