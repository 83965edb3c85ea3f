"""The HTTP server: vLLM's own, extended by an endpoint plugin and a command line."""
