"""The commands that talk to a server over HTTP, one to a file."""
