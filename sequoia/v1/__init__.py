"""Generated from `protos/sequoia/v1` by `make protos`; not edited by hand."""
