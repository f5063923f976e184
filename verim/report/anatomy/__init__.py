"""The page of a training step's anatomy, and that of sweeps: one file each, without scripts and far below 1 MB."""

from verim.report.anatomy.page import anatomy_page
from verim.report.anatomy.sweeps import sweeps_page

__all__ = ["anatomy_page", "sweeps_page"]
