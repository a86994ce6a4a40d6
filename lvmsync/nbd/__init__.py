"""The NBD protocol as a server speaks it: bytes in, requests and bytes out; no sockets, no threads."""
