"""Theory of deep learning beside its measurement."""
