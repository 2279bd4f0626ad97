"""What the theory is about: activations, initializers, models, and the layers of any model."""
