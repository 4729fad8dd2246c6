"""What a document of bench.py says: a table and findings in words for a configuration, and a figure of all.

    bench_report.py FIGURE.svg JSON...      draws the runs of several documents

Ratios are medians over the turns in which both systems ran.
"""

import html
import json
import statistics
import sys
from pathlib import Path

CONFIGURATION = ("graph", "machines", "link", "dim", "model")
BASELINES = ("distdgl", "distdgl-overlap")
# What a language model has done: by these names of rudder_comm_counts.
DECISIONS = ("decisions", "replace_decisions", "fallbacks", "decision_ns_p50", "model_load_ns", "model_cpu_ns")
# What is added at each step, to what stood before it.
LADDER = [
    ("distdgl", 0, "DistDGL"),
    ("distdgl-overlap", 0, "DistDGL + a thread that fetches the next"),
    ("off", 0, "Rudder, no buffer"),
    ("off", 1, "+ overlap: the next under way"),
    ("lfu", 1, "+ caching: lfu"),
    ("window", 16, "+ lookahead: window, 16 announced"),
]
WIDTH, LABEL, BAR, ROW, LADDER_AT = 1240, 130, 430, 18, 700
INK, FAINT, FETCH, COMPUTE, STEP, THEIRS = "#202124", "#5f6368", "#d9822b", "#9db8d6", "#4c8c5a", "#b3b7bd"


def grouped(runs: list[dict]) -> list[list[dict]]:
    """The runs of each configuration."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in CONFIGURATION), []).append(run)
    return list(groups.values())


def name_of(run: dict) -> str:
    """A system as the command line names it."""
    return run["system"] + (f"+{run['lookahead']}" if run["lookahead"] else "")


def title_of(run: dict) -> str:
    """A configuration in words."""
    graph = Path(run["graph"]).name
    return f"{graph}, {run['machines']} machines, {run['link']}, {run['dim']} floats, {run['model']}, batches of {run['batch']}"


def times(run: dict, other: dict) -> float:
    """How many epochs of `run` fit into one of `other`."""
    return statistics.median(theirs / ours for theirs, ours in zip(other["epoch_s"], run["epoch_s"]))


def table(runs: list[dict]) -> str:
    """A configuration's figures."""
    first = runs[0]
    lines = [
        f"{title_of(first)}: {first['minibatches']} minibatches an epoch, {first['threads']} threads of torch a trainer;"
        f" sampling, apart and alike for all: {first['sample_s']:.3f} s an epoch",
        f"{'system':18}{'epoch, s':>10}{'fetch, s':>10}{'compute, s':>12}{'x distdgl':>11}{'with sampling':>15}{'MB on the wire':>16}"
        f"{'remote rows':>13}  exact",
    ]
    for run in runs:
        lines.append(
            f"{name_of(run):18}{run['epoch_s_median']:10.3f}{run['fetch_s_median']:10.3f}{run['compute_s_median']:12.3f}"
            f"{run['times_distdgl']:11.2f}{run['times_distdgl_with_sampling']:15.2f}{run['wire_bytes'] / 1e6:16.1f}"
            f"{run['rows_fetched']:13.0f}  {'yes' if run['exact'] else 'NO'}"
        )
    return "\n".join(lines)


def findings(runs: list[dict]) -> list[str]:
    """What a configuration's figures say, in words."""
    by_name = {name_of(run): run for run in runs}
    theirs, ours = by_name["distdgl"], [run for run in runs if run["system"] not in BASELINES]
    lines = []
    if ours:
        best = max(ours, key=lambda run: run["times_distdgl"])
        fewer = 100 * (1 - best["wire_bytes"] / theirs["wire_bytes"])
        beside = [
            f"{times(best, by_name[name]):.2f} times {what}"
            for name, what in (("distdgl-overlap", "DistDGL's with overlap"), ("periodic", "that with the published scoring"))
            if name in by_name
        ]
        lines.append(f"best: {name_of(best)}, {best['times_distdgl']:.2f} times DistDGL's epochs, {fewer:.0f} % fewer bytes on the wire")
        lines[-1] += "".join(f"; {text}" for text in beside)
    for run in ours:
        ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(theirs["epoch_s"], run["epoch_s"])]
        spread = f"{run['times_distdgl']:.2f} times DistDGL's epochs ({min(ratios):.2f} to {max(ratios):.2f})"
        if run["system"] == "default":
            verdict = "at least" if run["times_distdgl"] >= 0.98 else "LESS than"
            lines.append(f"{name_of(run)}, attach(g) as it comes: {spread}, {verdict} 0.98")
        if run["system"] == "llm":
            slower = f", {100 * (1 / run['times_distdgl'] - 1):.0f} % slower" if run["times_distdgl"] < 1 else ""
            lines.append(
                f"{name_of(run)}: {spread}{slower}; {run['decisions']} decisions of a turn, {run['replace_decisions']} of them to replace,"
                f" {run['decision_ns_p50'] / 1e6:.0f} ms each, {run['fallbacks']} fallbacks; the model was loaded before, in"
                f" {run['model_load_ns'] / 1e9:.1f} s"
            )
    steps = [f"{what} {run['times_distdgl']:.2f}" for what, run in ladder(runs)]
    disturbed = max(share for run in runs for share in run["others"])
    lines.append(f"other programs took {100 * max(disturbed, 0):.0f} % of the processors' time at most while a system was measured")
    return [*lines, "what each step adds: " + ", ".join(steps)] if len(steps) > 1 else lines


def ladder(runs: list[dict]) -> list[tuple[str, dict]]:
    """Those steps that were run."""
    by_system = {(run["system"], run["lookahead"]): run for run in runs}
    return [(what, by_system[system, lookahead]) for system, lookahead, what in LADDER if (system, lookahead) in by_system]


def text(x: float, y: float, words: str, colour: str = INK, anchor: str = "start", size: int = 12) -> str:
    """Words of the figure."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{html.escape(words)}</text>'


def box(x: float, y: float, width: float, colour: str) -> str:
    """A bar of the figure."""
    return f'<rect x="{x:.1f}" y="{y + 3:.1f}" width="{max(width, 0):.1f}" height="{ROW - 5}" fill="{colour}"/>'


def panel(runs: list[dict], top: float) -> tuple[list[str], float]:
    """A configuration: epochs by system on the left, the ladder on the right; and where it ends."""
    marks = [text(0, top + 14, title_of(runs[0]), size=14)]
    marks.append(text(LABEL, top + 32, "an epoch:", FAINT))
    for at, (words, colour) in enumerate((("waiting for rows", FETCH), ("computing", COMPUTE))):
        marks += [box(LABEL + 66 + 130 * at, top + 20, 12, colour), text(LABEL + 82 + 130 * at, top + 32, words, FAINT)]
    marks.append(text(LADDER_AT, top + 32, "what each step adds: epochs in the time of one of DistDGL's", FAINT))
    first = top + 40
    scale = BAR / max(run["fetch_s_median"] + run["compute_s_median"] for run in runs)
    for at, run in enumerate(runs):
        y, fetch, compute = first + at * ROW, run["fetch_s_median"] * scale, run["compute_s_median"] * scale
        marks.append(text(LABEL - 6, y + 13, name_of(run), anchor="end"))
        marks += [box(LABEL, y, fetch, FETCH), box(LABEL + fetch, y, compute, COMPUTE)]
        marks.append(text(LABEL + fetch + compute + 6, y + 13, f"{run['epoch_s_median']:.2f} s, {run['times_distdgl']:.2f}×"))
    steps = ladder(runs)
    scale = 210 / max(run["times_distdgl"] for _, run in steps)
    for at, (what, run) in enumerate(steps):
        y, width = first + at * ROW, run["times_distdgl"] * scale
        colour = THEIRS if run["system"] in BASELINES else STEP
        marks += [text(LADDER_AT + 254, y + 13, what, anchor="end"), box(LADDER_AT + 260, y, width, colour)]
        marks.append(text(LADDER_AT + 266 + width, y + 13, f"{run['times_distdgl']:.2f}"))
    return marks, first + max(len(runs), len(steps)) * ROW + 26


def figure(runs: list[dict]) -> str:
    """An SVG of all configurations, one below the other."""
    marks, top = [], 0.0
    for group in grouped(runs):
        more, top = panel(group, top)
        marks += more
    font = 'font-family="system-ui, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 {WIDTH + 20} {top + 10:.0f}" {font}>'
    return "\n".join([head, f'<rect x="-10" y="-10" width="{WIDTH + 20}" height="{top + 10:.0f}" fill="#fff"/>', *marks, "</svg>\n"])


def main() -> None:
    """Draws documents that are there already."""
    target, *documents = map(Path, sys.argv[1:])
    target.write_text(figure([run for document in documents for run in json.loads(document.read_text())["runs"]]))


if __name__ == "__main__":
    main()
