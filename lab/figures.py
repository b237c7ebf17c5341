"""What contenders did, as figures with their uncertainty, and these as tables and pictures.

All intervals are of 95 %. Left out on purpose: several runs of decoders that sample.
"""

import csv
import io
import math
from collections import Counter
from importlib.util import find_spec
from operator import gt
from pathlib import Path

import torch

from lab.contenders import Contender
from lab.files import replacing
from lab.report import table
from strategies import require

DRAWS = 2000  # of a bootstrap
SUMS = ("right", "tokens", "forwards", "rows", "seconds", "ar_ness_local", "ar_ness_global")


# --- figures -------------------------------------------------------------------------------------


def counted(runs: list[dict]) -> Counter:
    """The sums over problems, as if each came alone."""
    sums = Counter({name: sum(run[name] for run in runs) for name in SUMS})
    unmatched = sum(run["extracted"] is None for run in runs)
    sums.update(problems=len(runs), unmatched=unmatched)
    if all("fragile" in run for run in runs):
        sums["fragile"] = sum(run["fragile"] for run in runs)
    return sums


def figures(sums: Counter, baseline: Counter | None) -> dict[str, float]:
    """Means over the problems; accuracy with its interval; speed-up over a baseline."""
    n = sums["problems"]
    low, high = wilson(sums["right"], n)
    found = {"accuracy": sums["right"] / n, "low": low, "high": high}
    found |= {name: sums[name] for name in ("problems", "right")}
    found |= {"unmatched": sums["unmatched"] / n}
    means = ("forwards", "rows", "ar_ness_local", "ar_ness_global")
    found |= {name: sums[name] / n for name in means}
    found["tokens_per_forward"] = sums["tokens"] / sums["forwards"]
    found["tokens_per_second"] = speed = sums["tokens"] / sums["seconds"]
    if "fragile" in sums:
        found["fragile"] = sums["fragile"] / max(sums["tokens"], 1)
    if baseline and baseline["tokens"]:
        found["speed_up"] = speed / (baseline["tokens"] / baseline["seconds"])
    return found


def paired(runs: list[dict], first: list[dict]) -> dict[str, float]:
    """The same problems beside another contender: on how many only one of them is right, how
    likely chance does that, and the intervals of what is measured problem by problem."""
    this, other = ([run["right"] for run in each] for each in (runs, first))
    gained, lost = sum(map(gt, this, other)), sum(map(gt, other, this))
    found = {"gained": gained, "lost": lost, "mcnemar": mcnemar(gained, lost)}
    values = {"difference": [a - b for a, b in zip(this, other)]}
    values["forwards"] = [run["forwards"] for run in runs]
    for name, each in values.items():
        found[f"{name}_low"], found[f"{name}_high"] = bootstrap(each)
    return found


def wilson(right: int, n: int) -> tuple[float, float]:
    """The interval of a share; unlike the usual one it holds near 0 and 1, too."""
    p, z = right / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), middle + half


def bootstrap(values: list[float]) -> tuple[float, float]:
    """The interval of a mean: what it is over as many problems, drawn again from these. At every
    call the same draws."""
    given, generator = torch.tensor(values, dtype=torch.float64), torch.Generator().manual_seed(0)
    drawn = given[torch.randint(len(given), (DRAWS, len(given)), generator=generator)]
    return tuple(drawn.mean(-1).quantile(torch.tensor([0.025, 0.975]).double()).tolist())


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's test, exact and two-sided: were both equally good, each problem on which only one
    is right would be a fair coin."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


# --- tables --------------------------------------------------------------------------------------


def tables(found: dict, without: dict[str, str], show=(), form=table) -> str:
    """All figures, the accuracy by task if there are several, and who has none, and why.

    show: of `against`, `unmatched` and `fragile`, which columns there are beside the cost
    """
    columns = lambda f: cost(f) | {name: text for part in show for name, text in part(f).items()}
    rows = [{"strategy": label} | columns(f) for label, f in found["all"].items()]
    none = dict.fromkeys(rows[0], "") | {"right": "none"}
    parts = [form(rows + [none | {"strategy": label} for label in without])]
    if len(tasks := [task for task in found if task != "all"]) > 1:
        right = lambda label: {t: f"{found[t][label]['accuracy']:.1%}" for t in tasks}
        parts.append(form([{"right": label} | right(label) for label in found["all"]]))
    parts += ["\n".join(f"{label}: {why}" for label, why in without.items())] if without else []
    return "\n\n".join(parts)


def cost(f: dict[str, float]) -> dict[str, str]:
    """A line of the table."""
    return {
        "right": f"{f['accuracy']:.1%}",
        "95 % interval": f"{f['low']:.1%} - {f['high']:.1%}",
        "forwards": f"{f['forwards']:.1f}",
        "rows": f"{f['rows']:.0f}",
        "tokens/forward": f"{f['tokens_per_forward']:.2f}",
        "tokens/s": f"{f['tokens_per_second']:.0f}",
        "speed-up": f"{f['speed_up']:.1f}x" if "speed_up" in f else "",
        "AR-ness": f"{f['ar_ness_local']:.2f} {f['ar_ness_global']:.2f}",
    }


def unmatched(f: dict[str, float]) -> dict[str, str]:
    return {"no match": f"{f['unmatched']:.1%}"}


def fragile(f: dict[str, float]) -> dict[str, str]:
    return {"fragile": f"{f['fragile']:.2%}"}


def against(f: dict[str, float]) -> dict[str, str]:
    """Problems that only this contender has right, and only the first; whether that is chance."""
    between = lambda name, form: " - ".join(format(f[f"{name}_{end}"], form) for end in ENDS)
    return {
        "forwards, 95 %": between("forwards", ".1f"),
        "difference, 95 %": between("difference", "+.1%"),
        "against the first": f"+{f['gained']} -{f['lost']}",
        "by chance": f"{f['mcnemar']:.2g}",
    }


ENDS = ("low", "high")


def as_csv(found: dict, without: dict[str, str]) -> str:
    """Every figure of every task, in full, and who has none."""
    tasks = found if len(found) > 2 else ["all"]
    rows = [{"task": t, "strategy": label} | f for t in tasks for label, f in found[t].items()]
    rows += [{"task": "all", "strategy": label} for label in without]
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text := io.StringIO(), names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


# --- the plot ------------------------------------------------------------------------------------


def check_plot(file: str) -> None:
    named, folder = file.endswith((".png", ".svg")), Path(file).parent
    require(named, "plot", file, "a name that ends in .png or .svg")
    require(folder.is_dir(), "plot", file, "a file in a folder that is there")
    if find_spec("matplotlib") is None:  # better known now than at the end
        raise ValueError("--plot needs matplotlib: pip install matplotlib")


def plot(file: str, points: list[tuple[Contender, dict[str, float]]]) -> None:
    """Draw accuracy with its interval against tokens per forward, a line for each family."""
    from matplotlib.figure import Figure  # slow: only who draws waits for it

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens per forward", ylabel="right answers, %", xscale="log")
    for family in dict.fromkeys(c.family for c, _ in points):
        own = [found for c, found in points if c.family == family]
        own.sort(key=lambda found: found["tokens_per_forward"])
        x = [found["tokens_per_forward"] for found in own]
        low, y, high = ([100 * f[name] for f in own] for name in ("low", "accuracy", "high"))
        error = [[b - a for a, b in zip(low, y)], [b - a for a, b in zip(y, high)]]
        axes.errorbar(x, y, error, marker="o", capsize=2, label=family)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    how = {"format": file[-3:], "metadata": {"Date": None} if file.endswith(".svg") else None}
    with replacing(file) as place:
        figure.savefig(place, **how)
