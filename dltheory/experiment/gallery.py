"""The gallery: a page for each experiment, with its statement, figures, verdicts, command and time.

Pages are Markdown for the documentation's site, and are written from results alone.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dltheory.experiment import claims, execute
from dltheory.experiment.catalogue import Experiment
from dltheory.experiment.store import ResultError

SYSTEMS = {
    "approximation": "Universal approximation",
    "backpropagation": "Backpropagation",
    "activations": "Activation functions",
    "gradients": "Vanishing and exploding gradients",
    "regularization": "Regularization and generalization",
    "convolution": "Convolutional networks",
}
_FIELD = re.compile(r"^(Paper|Formula|Run|Expect) +(?=\S)", re.MULTILINE)
_SPECIAL = re.compile(r"([\\*_<>$\[\]|#])")


class Statement(NamedTuple):
    """What an experiment's docstring says, by its parts; a part that is absent is empty.

    Attributes:
        summary: Its first line.
        paper: The papers and their claims.
        formula: The formula at issue.
        run: The commands, with their times.
        expect: The numbers to expect.
        rest: The paragraphs after these.
    """

    summary: str
    paper: str = ""
    formula: str = ""
    run: str = ""
    expect: str = ""
    rest: str = ""


def statement(docstring: str) -> Statement:
    r"""Take an experiment's docstring apart.

    Args:
        docstring: Its text.

    Returns:
        The `Statement`.

    Example:
        >>> statement("Slopes agree.\n\nPaper    Anon (2020): so.\nExpect   1.").paper
        'Anon (2020): so.'
    """
    summary, _, body = docstring.strip().partition("\n")
    head, *parts = _FIELD.split(body)
    fields, rest = {}, [head.strip()]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        text, _, after = text.strip().partition("\n\n")
        fields[name.lower()] = "\n".join(line.strip() for line in text.splitlines())
        rest.append(after.strip())
    return Statement(summary, **fields, rest="\n\n".join(filter(None, rest)))


def write(experiments: Sequence[Experiment], figures: Path, out: Path) -> list[Path]:
    """Write the pages of experiments, grouped by system, and an index with thumbnails.

    Args:
        experiments: Loaded experiments whose results are there.
        figures: The folder that `dltheory figures` drew into.
        out: Folder of the pages; figures are copied beside them.

    Returns:
        The paths of the pages, the index first.

    Raises:
        ResultError: If results or figures of an experiment are absent.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages, entries = [], {system: [] for system in SYSTEMS}
    for experiment in experiments:
        drawn = _figures(experiment, figures)
        for path in drawn:
            shutil.copyfile(path, out / path.name)
        stated = experiment.module.claims(experiment.results())
        told = statement(experiment.module.__doc__ or experiment.name)
        seconds = sum(execute.seconds(sweep, experiment.root) for sweep in experiment.sweeps)
        page = out / f"{experiment.name}.md"
        page.write_text(_page(told, [path.name for path in drawn], stated, seconds), "utf-8")
        pages.append(page)
        system = experiment.request.path.parent.name
        known = sum(claim.known_failure is not None for claim in stated)
        verdict = f"{len(stated)} claims" + (f", {known} known to fail" if known else "")
        entries.setdefault(system, []).append(
            f"[![]({drawn[0].name}){{w=14em}}]({page.name}) | "
            f"[{_escaped(told.summary)}]({page.name}) | {verdict}"
        )
    index = out / "index.md"
    index.write_text(_index(entries, [page.stem for page in pages]), "utf-8")
    return [index, *pages]


def _figures(experiment: Experiment, folder: Path) -> list[Path]:
    name = experiment.name
    found = [path for path in [folder / f"{name}.png"] if path.exists()]
    found += sorted(folder.glob(f"{name}-*.png"))
    if not found:
        raise ResultError(f"{folder} has no figure of {name}: run dltheory figures first")
    return found


def _page(
    told: Statement, figures: Sequence[str], stated: Sequence[claims.Claim], seconds: float
) -> str:
    sections = [f"# {_escaped(told.summary.removesuffix('.'))}"]
    sections += [f"![{_escaped(told.summary)}]({name})" for name in figures]
    sections += [f"**Statement.** {_escaped(told.paper)}"] if told.paper else []
    sections += [f"**Formula.** {told.formula}"] if told.formula else []
    sections += [_escaped(told.rest)] if told.rest else []
    sections += [f"**To expect.** {_escaped(told.expect)}"] if told.expect else []
    sections += [_table(stated)]
    sections += [f"```text\n{told.run}\n```"] if told.run else []
    sections += [f"The cells of this page took {seconds:.0f} s, one after the other."]
    return "\n\n".join(sections) + "\n"


def _table(stated: Sequence[claims.Claim]) -> str:
    rows = [
        "| Claim | Predicted | Measured | Tolerance | Verdict |",
        "| --- | --: | --: | --: | --- |",
    ]
    rows += ["| " + " | ".join(map(_escaped, claims.cells(claim))) + " |" for claim in stated]
    return "\n".join(rows)


def _index(entries: dict[str, list[str]], names: Sequence[str]) -> str:
    sections = [
        "# Gallery",
        "Every experiment: its figure, what it states, and how many claims it makes. A claim that "
        "is known to fail stays, with its reason.",
    ]
    for system, rows in entries.items():
        if rows:
            table = ["| | | |", "| --- | --- | --- |", *(f"| {row} |" for row in rows)]
            sections += [f"## {SYSTEMS.get(system, system)}", "\n".join(table)]
    sections += ["```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```"]
    return "\n\n".join(sections) + "\n"


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is; code in backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if i % 2 else _SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))
