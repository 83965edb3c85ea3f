"""The bundled demo model and the scripts that made and measured it."""
