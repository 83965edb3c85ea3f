"""The Python client, and commands that talk to a server; public names are in `em_inf`."""
