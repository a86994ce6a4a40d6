"""Chains of points and the members between them: what an archive knows of itself. Values only."""
