"""EM-INF in other people's clients, a few lines for each; see clients/README.md."""
