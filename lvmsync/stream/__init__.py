"""Frames and their bytes: what travels between a sender and a receiver, and lies in a snapback file."""
