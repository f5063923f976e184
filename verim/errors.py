"""Errors for the user: what was got, what was expected, which argument, what to do.

The command line prints the message of a `VerimError` as one line and exits with code 2; in Python they are
ordinary exceptions. An internal mistake of ours is an `AssertionError`, never one of these.
"""


class VerimError(Exception):
    """Base class of every error that is about what the user gave or about the user's machine."""


class InputError(VerimError, ValueError):
    """An argument, option or file that cannot work."""


class BusyError(VerimError):
    """A run directory that another process is using."""


class CorruptError(VerimError):
    """A file whose content does not match its checksum or its format."""


class SpaceError(VerimError, OSError):
    """No space left where something had to be written."""


class RankError(VerimError):
    """Another process of the same training that is gone or says nothing."""
