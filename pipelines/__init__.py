"""A plain library: bytes in, embedded chunks out; no HTTP, SQL or broker."""
