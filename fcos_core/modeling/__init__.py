"""The network: backbones, dense heads, and the detector that joins them."""
