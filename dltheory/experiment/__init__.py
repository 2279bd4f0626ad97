"""Sweeps, results, claims and figures: the only place with processes, files and progress bars.

- `sweep`: what an experiment computes, one pure trial over cells x grid x seeds;
- `execute`: sweeps on the local device;
- `workers`: cells over processes of this machine, or over others;
- `store`: results on disk, written whole or not at all;
- `claims`: predicted, measured, tolerance, verdict;
- `report`: theory beside one network's measurement, with a z-score for each layer;
- `figures`: theory as lines, measurement as bands, the same bytes every time;
- `catalogue`: experiments as files, found by name;
- `cli`: the command line.
"""

from . import catalogue, claims, cli, execute, figures, report, store, sweep, workers  # noqa: F401
