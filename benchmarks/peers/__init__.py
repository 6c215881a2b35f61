"""The peers: their environments and one standalone script each, run by the peer's own python."""
