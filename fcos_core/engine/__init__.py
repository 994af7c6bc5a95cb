"""Training and testing: the loops, and what stands guard over them."""
