"""Archives: past states of a device, kept as streams."""
