"""Serving over NBD: what the protocol of `lvmsync.nbd` is done with."""
