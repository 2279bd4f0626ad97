"""What a log and a bar say of a run."""

import io
import json

from dltheory.experiment import events
from dltheory.experiment.events import Event


def test_a_line_of_json_holds_what_happened_and_no_arrays():
    event = Event("progress", "gaussian", "width-8", 3, 10, config=object(), arrays={"a": object()})
    line = events.json_line("lengths", event)
    told = json.loads(line)
    assert "\n" not in line
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "experiment": "lengths",
        "kind": "progress",
        "sweep": "gaussian",
        "cell": "width-8",
        "done": 3,
        "points": 10,
    }


def test_an_error_is_a_line_of_json():
    told = json.loads(events.json_note("error", 'a "quoted"\nword'))
    assert (told["kind"], told["message"]) == ("error", 'a "quoted"\nword')


def test_a_bar_counts_points_and_cells(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    with events.bar(stream, 30, 3) as move:
        for kind, cell, done in [
            ("begun", "a", 0),
            ("progress", "a", 5),
            ("computed", "a", 10),
            ("present", "b", 10),
            ("lost", "c", 0),
        ]:
            move("lengths", Event(kind, "gaussian", cell, done, 10))
    for text in ("3/3 cells", "20/30", "lengths/gaussian/c"):
        assert text in stream.getvalue()
