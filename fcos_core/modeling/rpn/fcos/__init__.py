"""FCOS: Fully Convolutional One-Stage Object Detection (arXiv:1904.01355, arXiv:2006.09214)."""
