"""Scaling laws: the published ones, the fit to a ladder of runs, the ladder, and the plan made from a law."""
