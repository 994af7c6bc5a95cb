"""ATSS: Adaptive Training Sample Selection (arXiv:1912.02424)."""
