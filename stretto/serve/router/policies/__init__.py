"""Which replica answers a request: one policy per file."""
