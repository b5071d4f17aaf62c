"""Every route over HTTP, as its callers send it."""
