"""Sweeps, results, claims and figures: the only place with processes, files and progress bars.

- `sweep`: what an experiment computes, one pure trial over cells x grid x seeds;
- `execute`: sweeps, cell by cell, on the local devices;
- `events`: what happens while cells are computed;
- `programs`: a cell as a compiled program, over the local devices;
- `stages`: long trials in stages, their state on disk between two of them;
- `parts`: finished chunks of a cell that is not finished;
- `workers`: cells over processes of this machine, or over others;
- `store`: results on disk, written whole or not at all;
- `claims`: predicted, measured, tolerance, verdict;
- `report`: theory beside one network's measurement, with a z-score for each layer;
- `inspection`: the health of any unmodified model in one call: `dltheory.inspect`;
- `presentation`: that report in a terminal, in a notebook and in code;
- `health`: what vanishes, explodes, saturates or dies, where it starts, and the bounds that say so;
- `remedies`: what brings it back, predicted and tried;
- `anatomy`: layers, kernels and activations of a model;
- `recognition`: the activation before each layer, found by trying it;
- `examination`: everything that is measured on a model, by one program;
- `expectation`: what theory expects of each layer, one ahead;
- `reference`: results beside those of a reference;
- `labelled`: results with named axes, for xarray and pandas;
- `figures`: theory as lines, measurement as bands, the same bytes every time;
- `gallery`: pages of experiments, for the documentation;
- `catalogue`: experiments as files, found by name;
- `cli`: the command line.
"""

from . import (  # noqa: F401
    anatomy,
    catalogue,
    claims,
    cli,
    events,
    examination,
    execute,
    expectation,
    figures,
    gallery,
    health,
    inspection,
    labelled,
    parts,
    presentation,
    programs,
    recognition,
    reference,
    remedies,
    report,
    stages,
    store,
    sweep,
    workers,
)
