"""Scalars, spectra and activations in, numbers out. Runs no network."""
