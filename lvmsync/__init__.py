"""Move only the changed blocks of Linux block devices, undo it, and prove that the copy is right."""

__version__ = "0.1.0"
