"""Verim: measure the machine, plan what to train, train it, explain every second, prove the claims.

Importing this package loads nothing heavy; each room (`verim.ops`, `verim.models`, ...) is imported by name.
"""

__version__ = "0.1.0"
