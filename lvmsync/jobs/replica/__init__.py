"""A volume here and its copy elsewhere, kept alike with snapshots that lvmsync makes by itself."""
