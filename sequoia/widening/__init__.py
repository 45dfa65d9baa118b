"""The same words at a larger model's cost: a small Llama, zero-padded into a larger one's shape.

`shapes` says which shape, `source` reads the small model, `placement` puts every number where it belongs,
`shards` writes files without holding a model, `folder` makes the model folder, `draft` lets the small
model's draft read the wide one's features.
"""
