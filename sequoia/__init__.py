"""Sequoia: fast, lossless LLM generation as a service; what the roles share."""
