"""The figures of the paper, measured on the models at hand; `docs/figures.md` shows them."""
