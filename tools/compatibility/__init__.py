"""The parts of tools/compatibility_matrix.py."""
