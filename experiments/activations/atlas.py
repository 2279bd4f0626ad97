r"""Every activation of the catalogue on one page: certified facts, and its edge of chaos.

Paper    Hayou, Doucet and Rousseau (2019): with sigma_w^2 E phi'(h)^2 = 1 at the fixed length q
         a deep network neither forgets nor is chaotic. The constants of the catalogue (kinks,
         range, Lipschitz constant) are textbook facts; none of them is read here but to be judged.
Run      dltheory run atlas                 (one to two minutes on two cores)
         dltheory run atlas --profile full  (not timed)
Expect   Range and Lipschitz constant of every entry within bounds that interval arithmetic
         certifies from the bare function, and the same kinks. At every edge chi_1 = 1 and a fixed
         length to ten digits, the closed forms of tanh's kin, and a random layer that keeps length
         and squared gradient within four standard errors. Edges are at sigma_b^2 = 0.05 if there is
         a stable one, else at 0 (homogeneous functions) or 0.6 (GELU and SiLU have none below 0.17
         and 0.56).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure.activations import profile as measure_profile
from dltheory.networks import activations
from dltheory.theory import mean_field

# In the order in which an edge is looked for.
BIAS_VARS = (0.05, 0.0, 0.6)
FAMILIES = (
    ("relu", "leaky_relu", "prelu", "relu6", "relu2", "elu", "celu", "selu"),
    ("softplus", "squareplus", "log_sigmoid", "hard_swish", "gelu", "gelu_tanh", "silu", "mish"),
    ("tanh", "hard_tanh", "erf", "softsign", "sigmoid", "hard_sigmoid", "step"),
    ("identity", "abs", "sin", "cos"),
)
COLUMNS = 4


@dataclass(frozen=True)
class Config:
    """One activation.

    Attributes:
        activation: Its name in the catalogue.
        width: Units of the random layer.
        reach: The curves are drawn from minus this to this.
    """

    activation: str = "relu"
    width: int = 4096
    reach: float = 4.0


def edge(phi, bias_vars):
    """The first edge of chaos of an activation, chi_1 there, and its length after a layer."""
    weight_vars, lengths = mean_field.edge_of_chaos(phi, bias_var=bias_vars)
    chosen = jnp.argmax(~jnp.isnan(weight_vars))
    weight_var, bias_var, q = (a[chosen] for a in (weight_vars, bias_vars, lengths))
    at = jnp.where(jnp.isnan(q), 1.0, q)  # Every length is fixed.
    return {
        "weight_var": weight_var,
        "bias_var": bias_var,
        "q": q,
        "chi_1": mean_field.chi_1(phi, at, weight_var=weight_var),
        "next": mean_field.q_map(phi, at, weight_var=weight_var, bias_var=bias_var) / at,
    }


def trial(key, config):
    """What the catalogue says, what is found from the bare function, and the edge of chaos."""
    phi = activations.get(config.activation)
    # Certificates are not traceable: they are made from the function alone, while it is traced.
    # The edge is solved once, which takes far less time than a good compilation.
    with jax.ensure_compile_time_eval():
        found = measure_profile(phi.fn)
        solve = jax.jit(
            lambda bias_vars: edge(phi, bias_vars),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        solved = solve(jnp.array(BIAS_VARS))
    h = jnp.linspace(-config.reach, config.reach, 400)  # No point is a kink.
    slope = jax.vmap(jax.grad(phi.fn))

    weight_var, bias_var = solved["weight_var"], solved["bias_var"]
    q = jnp.where(jnp.isnan(solved["q"]), 1.0, solved["q"])
    units = jnp.sqrt(q) * jax.random.normal(key, (config.width,))
    return {
        "h": h,
        "value": phi(h),
        "slope": slope(h),
        "stated_kinks": jnp.array(phi.kinks),
        "stated_range": jnp.array(phi.range),
        "stated_lipschitz": jnp.array(phi.lipschitz),
        "kinks": jnp.array(found.kinks),
        "range": jnp.array(found.range),
        "lipschitz": jnp.array(found.lipschitz),
        "infimum": jnp.array(found.infimum),
        "supremum": jnp.array(found.supremum),
        "steepest": jnp.array(found.steepest),
        "certified": jnp.array(not found.assumed),
        **solved,
        "growth": weight_var * jnp.mean(slope(units) ** 2),
        "length": (weight_var * jnp.mean(phi(units) ** 2) + bias_var) / q,
    }


def sweeps(profile, config):
    """One cell per activation."""
    seeds = {"quick": 64, "full": 1000}[profile]
    cells = {"activation": activations.names()}
    return [Sweep("atlas", trial, config, cells=cells, seeds=seeds, x64=True)]


def _entries(results):
    """Facts by activation, without the axis of seeds but for what is measured."""
    measured = ("growth", "length")
    return {
        config.activation: {k: a if k in measured else a[0] for k, a in arrays.items()}
        for config, arrays in results["atlas"]
    }


def claims(results):
    """The catalogue's facts, then the edges."""
    entries = _entries(results)
    edges = {name: e for name, e in entries.items() if not np.isnan(e["weight_var"])}
    made = []
    for what, pick in (
        ("infimum", lambda e: (e["stated_range"][0], e["range"][0], e["infimum"])),
        ("supremum", lambda e: (e["stated_range"][1], e["range"][1], e["supremum"])),
        ("Lipschitz constant", lambda e: (e["stated_lipschitz"], e["lipschitz"], e["steepest"])),
    ):
        facts = [tuple(map(np.asarray, pick(e))) for e in entries.values()]
        finite = [fact for fact in facts if np.isfinite(fact[0])]
        certified = [
            fact for fact, e in zip(facts, entries.values(), strict=True) if e["certified"]
        ]
        certified = [fact for fact in certified if np.isfinite(fact[0])]
        stated, _, (lower, upper) = (np.array(c).T for c in zip(*certified, strict=True))
        outside = np.maximum(np.maximum(lower - stated, stated - upper), 0)
        text = f"{what} of the catalogue: how far outside its certified bounds ({len(certified)})"
        rounding = 4 * np.finfo(float).eps * np.maximum(1, abs(stated))
        made.append(worst(text, 0.0, outside, rounding))
        stated, measured = (np.array([fact[i] for fact in finite]) for i in range(2))
        text = f"{what} of the catalogue, and as found from the bare function ({len(finite)})"
        made.append(worst(text, stated, measured, 1e-6 * np.maximum(1, abs(stated))))
        wrong = sum(not np.isfinite(s) and s != f for s, f, _ in facts)
        text = f"entries whose {what} is infinite by the catalogue but not as found"
        made.append(Claim(text, 0.0, float(wrong), 0.0))
    apart = lambda a, b: len(a) != len(b) or np.abs(a - b).max(initial=0) > 1e-9
    wrong = sum(apart(e["stated_kinks"], e["kinks"]) for e in entries.values())
    made.append(Claim("entries whose kinks are others than found", 0.0, float(wrong), 0.0))

    stack = lambda name: np.array([e[name] for e in edges.values()])
    text = f"chi_1 at the edge, {len(edges)} entries"
    made.append(worst(text, 1.0, stack("chi_1"), 1e-10))
    live = stack("q") != 0
    made.append(worst("length after a layer there, per q", 1.0, stack("next")[live], 1e-10))
    made += _closed_forms(edges)
    for name, text in (
        ("growth", "growth of squared gradients through a random layer at the edge"),
        ("length", "length after it, per q"),
    ):
        samples = stack(name)[live]
        allowed = 4 * samples.std(1, ddof=1) / math.sqrt(samples.shape[1])
        # Where nothing fluctuates (abs has slopes of one) rounding is left.
        made.append(worst(text, 1.0, samples.mean(1), allowed + 1e-12))
    return made


def _closed_forms(edges):
    """The line sigma_w^2(q) of four activations, and the single point of ReLU."""
    q = {name: edges[name]["q"] for name in ("erf", "sin", "hard_tanh", "tanh")}
    known = {
        "erf": np.pi / 4 * np.sqrt(1 + 4 * q["erf"]),
        "sin": 1 + np.tanh(q["sin"]),
        "hard_tanh": 1 / special.erf(1 / np.sqrt(2 * q["hard_tanh"])),
        "relu": 2.0,
    }
    made = [
        Claim(
            f"sigma_w^2 at the edge, closed form ({name})", value, edges[name]["weight_var"], 1e-9
        )
        for name, value in known.items()
    ]
    text = "sigma_w^2 at the edge, published (tanh, sigma_b^2 = 0.05)"
    return [*made, Claim(text, 1.76095, edges["tanh"]["weight_var"], 5e-6)]


def figure(results):
    """The atlas, and lengths and gradients through random layers at the edges."""
    entries = _entries(results)
    return {"page": _page(entries), "edges": _edges(entries)}


def _page(entries):
    listed = [name for family in FAMILIES for name in family]
    families = [*FAMILIES, tuple(name for name in entries if name not in listed)]
    rows = [f[i : i + COLUMNS] for f in families for i in range(0, len(f), COLUMNS)]
    fig, axes = figures.axes(len(rows), COLUMNS, size=(2.6, 2.0))
    for ax, name in zip(axes.ravel(), (n for row in rows for n in _filled(row)), strict=True):
        if name not in entries:
            ax.set_axis_off()
            continue
        entry = entries[name]
        ax.plot(entry["h"], entry["value"], color=figures.COLORS[0], label=r"$\phi$")
        slope = {"color": figures.COLORS[1], "linestyle": figures.DASHES[1], "linewidth": 1.2}
        ax.plot(entry["h"], entry["slope"], label=r"$\phi'$", **slope)
        ax.set_title(f"{name}\n{_facts(entry)}\n{_edge(entry)}", fontsize=7)
        ax.tick_params(labelsize=6.5)
        both = np.stack([entry["value"], entry["slope"]])
        ax.set_ylim(max(both.min(), -4.2) - 0.15, min(both.max(), 4.2) + 0.15)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    fig.suptitle(
        "L is the Lipschitz constant; * says that a bound is certified for |h| up to 16 only",
        fontsize=8,
    )
    return fig


def _filled(row):
    return (*row, *(None,) * (COLUMNS - len(row)))


def _facts(entry):
    low, high = entry["range"]
    left = r"($-\infty$" if low == -np.inf else f"[{_number(low)}"
    right = r"$\infty$)" if high == np.inf else f"{_number(high)}]"
    steep = r"$\infty$" if np.isinf(entry["lipschitz"]) else _number(entry["lipschitz"])
    star = "" if entry["certified"] else "*"
    return f"range {left}, {right}   L = {steep}{star}"


def _edge(entry):
    if np.isnan(entry["weight_var"]):
        return "no stable edge"
    q = "any" if np.isnan(entry["q"]) else _number(entry["q"])
    weight_var, bias_var = _number(entry["weight_var"]), _number(entry["bias_var"])
    return rf"$\sigma_w^2$ = {weight_var}   $\sigma_b^2$ = {bias_var}   q = {q}"


def _number(value):
    return f"{round(float(value), 6) + 0.0:.4g}"


def _edges(entries):
    """What a random layer at the edge does to length and gradient, one row an activation."""
    edges = {name: e for name, e in entries.items() if not np.isnan(e["weight_var"])}
    fig, axes = figures.axes(1, 2, size=(4.0, 0.24 * len(edges) + 0.6), sharey=True)
    rows = np.arange(len(edges))[::-1]
    titles = ("growth of squared gradients", "length after a layer, per q")
    for ax, what, title in zip(axes[0], ("growth", "length"), titles, strict=True):
        samples = np.array([e[what] for e in edges.values()])
        error = 2 * samples.std(1, ddof=1) / math.sqrt(samples.shape[1])
        ax.axvline(1.0, color="#555555", linewidth=1.2, label="theory")
        ax.errorbar(
            samples.mean(1),
            rows,
            xerr=error,
            fmt="o",
            markersize=3,
            color=figures.COLORS[0],
            label="random layer, two standard errors",
        )
        ax.set_title(title)
        ax.set_yticks(rows, list(edges))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig
