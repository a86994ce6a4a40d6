"""Where an archive's objects lie: named, written once, never changed."""
