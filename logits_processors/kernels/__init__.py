"""The methods of `reference.py`, fused: numba on CPUs."""
