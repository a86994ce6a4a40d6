"""Moving a live volume: passes while it is in use, and a cut-over that is as short as was promised."""
