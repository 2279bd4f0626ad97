"""The command line, on a user's own file outside of `experiments/`."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dltheory.experiment import catalogue, cli, execute, store

FILE = Path(__file__).with_name("linear_spectrum.py")


def words_only(value):
    return " ".join(map(str, value)).replace(__file__, "FILE") if isinstance(value, list) else ""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one quick run."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "keep_compilations", lambda: None)
        assert cli.main(["run", str(FILE), "--results", str(root), "--seeds", "20"]) == 0
    return root


@pytest.fixture
def call(results, monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder: the exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "keep_compilations", lambda: None)

    def run(verb, *words, on=FILE):
        target = [] if on is None else [str(on)]
        shared = [] if verb == "list" else ["--results", str(results), "--seeds", "20"]
        try:
            code = cli.main([verb, *target, *shared, *words])
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def variant(folder, **lines):
    """A copy of the experiment, of the same name, with top-level assignments replaced."""
    source = FILE.read_text()
    for name, value in lines.items():
        [line] = [line for line in source.splitlines() if line.startswith(f"{name} = ")]
        source = source.replace(line, f"{name} = {value!r}")
    (folder / FILE.name).write_text(source)
    return folder / FILE.name


def test_a_second_run_finds_everything(call):
    code, out, err = call("run")
    assert (code, err) == (0, "")
    assert out.startswith("linear_spectrum: 0 cells computed, 3 already there, ")


def test_status(call):
    assert call("status") == (
        0,
        "linear_spectrum/gaussian: 2 of 2 cells\nlinear_spectrum/one_by_one: 1 of 1 cells\n",
        "",
    )
    _, out, _ = call("status", "--width", "512")
    assert "linear_spectrum/gaussian: 0 of 1 cells, absent: width-512\n" in out


def test_figures(call, tmp_path):
    code, out, _ = call("figures", "--out", "drawn")
    written = [Path("drawn", f"linear_spectrum.{suffix}") for suffix in ("svg", "pdf", "png")]
    assert code == 0
    assert out.split() == [str(path) for path in written]
    assert all((tmp_path / path).stat().st_size > 1000 for path in written)


@pytest.mark.parametrize("verb", ["run", "status", "figures", "claims"])
def test_results_of_other_code_are_pointed_out_and_used(call, tmp_path, verb):
    path = tmp_path / FILE.name
    path.write_text(FILE.read_text().replace("config.scale * jnp", "2 * config.scale * jnp"))
    code, out, err = call(verb, on=path)
    assert code == 0
    assert "FAILS" not in out
    assert err.splitlines()[0].startswith(
        "dltheory: warning: linear_spectrum/gaussian: the trial's code has changed since 2 of 2 "
        "cells were computed (width-8, width-16); remove them from "
    )
    assert err.count("warning") == 2


def test_a_warning_is_a_line_of_json(call, tmp_path):
    path = tmp_path / FILE.name
    path.write_text(FILE.read_text().replace("config.scale * jnp", "2 * config.scale * jnp"))
    _, _, err = call("run", "--log", "json", on=path)
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["kind"] for line in lines] == ["warning"] * 2 + ["present"] * 3


def test_claims_that_hold(call):
    code, out, _ = call("claims")
    assert code == 0
    assert out.count("holds") == 2
    for word in ("claim", "predicted", "measured", "tolerance", "verdict", "width 16"):
        assert word in out


@pytest.mark.parametrize(
    ("factor", "known_failure", "code", "verdict"),
    [
        (2.0, None, 1, "FAILS"),
        (2.0, "the factor is wrong", 0, "fails, as recorded: the factor is wrong"),
        (1.0, "said to fail", 1, "HOLDS, though recorded as failing: said to fail"),
    ],
)
def test_claims_that_fail(call, tmp_path, factor, known_failure, code, verdict):
    path = variant(tmp_path, FACTOR=factor, KNOWN_FAILURE=known_failure)
    got, out, _ = call("claims", on=path)
    assert got == code
    assert out.count(verdict) == 2


def test_figures_and_claims_compute_nothing(call, monkeypatch):
    monkeypatch.setattr("dltheory.experiment.execute.evaluate", None)
    assert call("claims")[0] == call("figures")[0] == 0
    code, _, err = call("claims", "--profile", "full")
    assert code == 1
    assert "full/gaussian lacks 2 of 2 cells (width-8, width-16): run it first" in err


def test_a_flag_takes_the_place_of_an_axis(call):
    code, out, _ = call("run", "--width", "5")
    assert code == 0
    assert "1 cells computed, 1 already there" in out
    code, out, _ = call("claims", "--width=5")
    assert code == 0
    assert "width 5" in out


def test_a_damaged_result_is_named(call, results):
    path = results / "linear_spectrum" / "quick" / "gaussian" / "width-16" / store.ARRAYS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    code, _, err = call("claims")
    path.write_bytes(whole)
    assert code == 1
    assert f"{path} is damaged" in err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--width", "wide"], 2, "invalid literal for int"),
        (["--widht", "5"], 2, "Unrecognized"),
        (["--weight-var", "-1"], 2, "weight_var is -1.0, want at least 0"),
        (["--weight-var", "nan"], 2, "config.weight_var is nan: a configuration holds finite"),
        (["--seeds", "0"], 2, "seeds is 0, want an integer of at least 1"),
        (["--seeds", "many"], 2, "invalid int value: 'many'"),
        (["--profile", "slow"], 2, "invalid choice: 'slow'"),
        (["--seed", "-1"], 2, "seed is -1, want an integer of at least 0"),
        (["--seed", "1"], 1, "seed: 0 recorded, 1 asked for"),
        (["--workers", "2", "--scheduler", "a"], 2, "not allowed with argument --workers"),
        (["--scheduler", "tcp://"], 2, "--scheduler tcp://: missing port number in address"),
        (["--distributed", "host,2,2"], 2, "host,2,2 is given, want HOST:PORT,COUNT,INDEX"),
        (["--log", "xml"], 2, "invalid choice: 'xml'"),
        (["--all"], 2, "and --all are both given, want one or the other"),
        (["--scale", "2"], 1, "config.scale: 1.0 recorded, 2.0 asked for"),
        (["--results", __file__], 1, "File exists"),
    ],
    ids=words_only,
)
def test_a_refused_flag_says_why(call, words, code, text):
    got, _, err = call("run", *words)
    assert got == code
    assert text in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["bogus"], "'bogus' is no command, want list, run, figures, claims, status, gc"),
        (["run"], "run needs the NAME or PATH of an experiment, or --all"),
        (["run", "nowhere"], "there is not an experiment named 'nowhere' in"),
        (["claims"], "there is not any experiment in"),
        (["run", "nowhere.py"], "nowhere.py is no file"),
        (["run", "empty.py"], "empty.py has no Config, sweeps, figure, claims; an experiment has"),
        (["run", "b c.py"], "experiment 'b c' cannot be a folder"),
    ],
    ids=words_only,
)
def test_a_wrong_command_says_what_is_wanted(monkeypatch, capsys, tmp_path, words, text):
    monkeypatch.chdir(tmp_path)
    for name in ("empty.py", "b c.py"):
        Path(name).write_text("")
    assert cli.main(words) == 2
    assert text in capsys.readouterr().err


def test_help(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    assert "dltheory run NAME|PATH|--all" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", str(FILE), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--profile" in out
    assert "--weight-var FLOAT" in out


def test_experiments_are_found_by_name(tmp_path, call):
    for folder in ("gradients", "networks"):
        (tmp_path / "experiments" / folder).mkdir(parents=True)
    variant(tmp_path / "experiments" / "gradients")
    Path("experiments/gradients/_shared.py").write_text("raise AssertionError")
    code, out, _ = call("list", on=None)
    assert code == 0
    assert out.split(maxsplit=1)[0] == "linear_spectrum"
    assert "A user's own experiment: the mean squared singular value" in out
    assert out.count("\n") == 1
    for on, words in (("linear_spectrum", []), (None, []), (None, ["--all"])):
        assert call("claims", *words, on=on)[0] == 0
    code, _, err = call("claims", "--width", "8", on=None)
    assert code == 2
    assert "--width 8: the fields of a Config need one experiment, by NAME" in err

    variant(tmp_path / "experiments" / "networks")
    with pytest.raises(
        catalogue.UsageError, match=r"is .*gradients.*, .*networks.*: give the path"
    ):
        catalogue.find("linear_spectrum")


def test_a_bar_is_drawn_if_somebody_watches(call, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = call("run")
    assert code == 0
    assert "3/3 cells" in err
    assert "140/140" in err  # 2 widths, 3 variances and 20 seeds, and 20 one by one.


def test_a_log_is_lines_of_json(call):
    code, _, err = call("run", "--log", "json", "--width", "8")
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert [(line["kind"], line["sweep"], line["cell"], line["done"]) for line in lines] == [
        ("present", "gaussian", "width-8", 60),
        ("present", "one_by_one", "all", 20),
    ]
    code, _, err = call("run", "--log=json", "--scale", "2")
    assert code == 1
    error = json.loads(err.splitlines()[-1])
    assert error["kind"] == "error"
    assert "config.scale: 1.0 recorded, 2.0 asked for" in error["message"]


def test_results_are_compared_with_a_reference(call, results, tmp_path):
    committed = shutil.copytree(results, tmp_path / "committed")
    profile = committed / "linear_spectrum" / "quick"
    agree = f"linear_spectrum: all arrays agree with {profile}\n"
    check = "figures", "--check", str(committed)
    assert call(*check) == (0, agree, "")
    assert not (tmp_path / "figures").exists()

    folder = profile / "gaussian" / "width-16"
    manifest, arrays = store.load(folder)
    old = float(arrays["mean_square"][0, 3])
    changed = {**arrays, "mean_square": arrays["mean_square"].copy()}
    changed["mean_square"][0, 3] = new = np.float32(old + 0.5)
    shutil.rmtree(folder)
    store.save(folder, changed, manifest)
    differ = (
        "linear_spectrum/gaussian/width-16 mean_square: 1 of 60 differ, the most at [0, 3]: "
        f"{old:.9g}, {new:.9g} in the reference\nlinear_spectrum: 1 arrays differ from {profile}\n"
    )
    assert call(*check) == (1, differ, "")
    assert call(*check, "--atol", "0.6") == (0, agree, "")
    code, _, err = call("figures", "--check", str(tmp_path / "nothing"))
    assert code == 1
    assert "lacks 2 of 2 cells" in err


def test_what_killed_runs_left_behind_is_removed(tmp_path, capsys):
    sweep = tmp_path / "linear_spectrum" / "quick" / "gaussian"
    store.save(sweep / "width-8", {"a": np.zeros(2)}, {})
    names = [".tmp-width-8-0123456789abcdef", ".tmp-width-9-0123456789abcdef", ".part-width-8"]
    for name in [*names, ".tmp-mine", ".tmp-full-0123456789abcdef", ".part-width-9"]:
        (sweep / name).mkdir()
    (sweep / names[0] / store.ARRAYS).write_bytes(b"half")
    (sweep / ".tmp-full-0123456789abcdef" / "notes.txt").touch()
    (sweep / ".tmp-link-0123456789abcdef").symlink_to(tmp_path)
    old = time.time() - 7200
    os.utime(sweep / names[0], (old, old))

    before = {path.name for path in sweep.iterdir()}
    command = ["gc", "--results", str(tmp_path)]
    assert cli.main([*command, "--older", "3"]) == 0
    assert capsys.readouterr().out == f"removed {sweep / names[2]}\n"
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"removed {sweep / names[0]}\n"
    assert cli.main([*command, "--older", "0"]) == 0
    assert capsys.readouterr().out == f"removed {sweep / names[1]}\n"
    assert before - {path.name for path in sweep.iterdir()} == set(names)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--older", "-1"])
    assert "-1 is given, want a number of at least 0" in capsys.readouterr().err


def test_end_to_end_in_a_process_of_its_own(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run(*words):
        command = "import sys; from dltheory.experiment.cli import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", command, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = run("run", str(FILE), "--seeds", "2", "--width", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 cells computed, 0 already there" in done.stdout
    assert list((tmp_path / "cache" / "dltheory" / "xla").iterdir())
    claims = run("claims", str(FILE), "--seeds", "2", "--width", "4")
    assert claims.returncode in (0, 1)
    assert "mean squared singular value, width 4" in claims.stdout
    assert run("run", str(FILE), "--width", "wide").returncode == 2
