"""Bytes that the kernel keeps, and their values: one module a mechanism, no I/O."""
