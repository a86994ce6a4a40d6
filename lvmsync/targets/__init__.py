"""Where changes land: devices and files, and the snapbacks that can undo it."""
