"""The page of a training step's anatomy: one file, without scripts and far below 1 MB."""

from verim.report.anatomy.page import anatomy_page

__all__ = ["anatomy_page"]
