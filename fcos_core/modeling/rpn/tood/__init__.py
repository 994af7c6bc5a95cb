"""TOOD: Task-aligned One-stage Object Detection (arXiv:2108.07755)."""
