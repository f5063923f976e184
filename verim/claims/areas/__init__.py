"""The claims, a file or more for each area: every module here is imported, and its claims are found."""
