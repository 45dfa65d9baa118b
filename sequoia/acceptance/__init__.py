"""Measuring how well a draft goes with a target: on texts that the target writes itself.

`continuations` lets the target write, `measure` compares both models at every position of what it
wrote, `walk` counts the steps that a tree takes over it, `timing` compares what they cost.
"""
