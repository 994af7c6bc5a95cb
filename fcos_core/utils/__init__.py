"""Helpers that know nothing of models, data or config: they import only the standard library, NumPy and PyTorch."""
