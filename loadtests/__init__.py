"""Measurements: each one command, each pairing what it compares in one run."""
