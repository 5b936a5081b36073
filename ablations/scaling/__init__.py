"""How the costs of sweeps, records and searches grow with their number (``lgd bench load``)."""
