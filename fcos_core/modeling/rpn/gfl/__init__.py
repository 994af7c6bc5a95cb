"""GFL: Generalized Focal Loss (arXiv:2006.04388)."""
