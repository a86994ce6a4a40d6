"""``lvmsync archive ...``: past states of a device, kept as streams: taken, listed, restored, combined, proved."""

from lvmsync.cli.archive import keys, look, mounting, points, proof, restoring, running, serving, tidying, timing
from lvmsync.cli.archive.app import app

__all__ = ["app", "keys", "look", "mounting", "points", "proof", "restoring", "running", "serving", "tidying", "timing"]
