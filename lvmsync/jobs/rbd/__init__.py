"""RBD images as targets: filled by ``rbd import-diff``, a snapshot for each point."""
