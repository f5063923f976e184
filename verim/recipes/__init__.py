"""Runnable experiments, one readable file each: `python -m verim.recipes.<name> --help`."""
