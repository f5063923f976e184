"""Studies turned into pages and into tables on the terminal; every number comes from `study.json`."""

from verim.report.page import study_page

__all__ = ["study_page"]
