"""Sweeps, results, claims and figures: the only place with processes, files and progress bars."""
