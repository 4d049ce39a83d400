"""The HTTP server: a thin skin over `AsyncLLM`. See `app` for its routes and `lifecycle` for how it starts and ends."""
