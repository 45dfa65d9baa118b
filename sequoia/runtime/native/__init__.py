"""Passes of Llama-like decoders on a CPU, compiled for the machine that they run on."""
