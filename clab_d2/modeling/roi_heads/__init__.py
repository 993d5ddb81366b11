"""Second stages: what a two-stage detector makes of its proposals."""
