"""Randomized faults of backups, and an oracle that judges them without asking NovaStack (`tests/faults/test_randomized.py`)."""
