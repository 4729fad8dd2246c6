"""The DistDGL adapter beside DistDGL: epochs and single pulls on shaped links between machines that are namespaces of this one.

    bench.py FOLDER JSON [--quick] [--alone] [--graphs LIST] [--links LIST] [--dims LIST] [--machines LIST] [--models LIST]
        [--systems LIST] [--rounds N] [--part-config FILE]

FOLDER keeps graphs and logs; JSON is the document that is written, with a figure beside it; rudder_dgl is the one that PYTHONPATH gives.
All systems of a configuration run within one job, in turns whose order alternates, on the same recorded epochs, each of them sampled anew;
ratios are medians over these turns. DistDGL's memory allocator is tuned on both sides as one would tune it (MALLOC_*), which halves its
fetches of wide rows.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import bench_report
import machines

HERE = Path(__file__).resolve().parent
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
# A name, and how many minibatches are announced ahead.
SYSTEMS = """distdgl distdgl-overlap off off+1 landing+16 fixed fixed+16 periodic periodic+16 llm llm+16 lfu lfu+1 lfu+16 window window+8
    window+16 analytic+16 default default+16""".split()
QUICK_SYSTEMS = "distdgl distdgl-overlap off off+1 periodic llm lfu lfu+1 window+16 default".split()
LIMIT_S = 3600
# Options of graphs.py.
GENERATED = ["--nodes", "100000", "--edges", "1000000", "--dims", "100", "602"]
BUNDLED = ["--dims", "128", "602"]


def configurations(asked: argparse.Namespace) -> list[dict]:
    """What is measured: graph, machines, link, floats a row, model."""
    graphs = [str(asked.part_config)] if asked.part_config else asked.graphs or ["rmat", *([] if asked.quick else ["sbm", "debian"])]
    links = asked.links or (["1gbit", "unshaped"] if asked.quick else ["1gbit", "10gbit", "unshaped"])
    models = asked.models or ["sage", *([] if asked.quick else ["gat"])]
    chosen = []
    for graph, count, link, model in itertools.product(graphs, asked.machines, links, models):
        if asked.quick:
            widths = ["100" if link == "unshaped" else "602"]
        else:
            widths = ["128"] if graph == "debian" else ["602"] if asked.part_config else ["602", "100"]
        for dim in asked.dims or widths:
            chosen.append({"graph": graph, "machines": int(count), "link": link, "dim": int(dim), "model": model})
    return chosen


def parted(folder: Path, graph: str, count: int) -> Path:
    """The partitions of a graph by its name."""
    return machines.partitions(folder, graph, count, *(BUNDLED if graph == "debian" else GENERATED))


def model_file() -> Path:
    """Where the library looks for the language model."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rudder"
    folder = Path(os.environ.get("RUDDER_MODEL_DIR") or cache)
    return Path(os.environ.get("RUDDER_MODEL") or folder / "smollm2-135m-instruct.gguf")


def systems_of(asked: argparse.Namespace) -> list[tuple[str, int]]:
    """Names and lookaheads of the systems to run, DistDGL in any case: all are compared with it."""
    names = asked.systems or (QUICK_SYSTEMS if asked.quick else SYSTEMS)
    parsed = [(name, int(lookahead or 0)) for name, _, lookahead in (text.partition("+") for text in names)]
    if any(name == "llm" for name, _ in parsed) and not model_file().is_file():
        print(f"the rows of the language model are left out: there is no {model_file()}; `make model` fetches it")
        parsed = [system for system in parsed if system[0] != "llm"]
    return parsed if ("distdgl", 0) in parsed else [("distdgl", 0), *parsed]


def carry_out(folder: Path, parts: Path, plan: dict) -> list[dict]:
    """Runs a job for a plan, and gives what each trainer answers."""
    logs = folder / "logs" / "bench"
    logs.mkdir(parents=True, exist_ok=True)
    with machines.Machines(plan["machines"], None if plan["link"] == "unshaped" else plan["link"]) as hosts:
        path = logs / "plan.json"
        path.write_text(json.dumps({**plan, "addresses": hosts.addresses}))
        job = machines.Job(hosts, parts, logs, environment=ALLOCATOR)
        job.run(HERE / "bench_trainer.py", str(path))
        statuses = job.wait(LIMIT_S)
    if any(status != 0 for status in statuses):
        print("\n".join(job.log_of(rank).read_text(errors="replace")[-3000:] for rank in range(len(statuses))))
        sys.exit(f"bench.py: trainers ended with statuses {statuses}")
    return [json.loads(path.with_suffix(f".{rank}.json").read_text()) for rank in range(len(statuses))]


def turn_of(of_ranks: tuple[dict, ...]) -> dict:
    """One turn of a system, for one epoch of it: the slowest trainer's seconds, of which trainers waited for rows as their mean says and
    computed for the rest; bytes and rows of all trainers. Computing holds the wait for the gradients of others."""
    epochs = list(map(max, zip(*(run["epoch_s"] for run in of_ranks))))
    fetches = list(map(statistics.fmean, zip(*(run["fetch_s"] for run in of_ranks))))
    return {
        "epoch_s": statistics.median(epochs),
        "fetch_s": statistics.median(fetches),
        "compute_s": statistics.median(epoch - fetch for epoch, fetch in zip(epochs, fetches)),
        "wire_bytes": sum(run["wire_bytes"] for run in of_ranks),
        "rows_fetched": sum(run["rows_fetched"] for run in of_ranks),
        "exact": all(run["exact"] for run in of_ranks),
        "others": of_ranks[0]["others"],
    }


def runs_of(plan: dict, answers: list[dict]) -> list[dict]:
    """One document a system: medians over its turns, which stand beside them."""
    turns: dict[tuple[str, int], list[dict]] = {}
    decided: dict[tuple[str, int], dict] = {}
    for of_ranks in zip(*(answer["runs"] for answer in answers)):
        system = of_ranks[0]["system"], of_ranks[0]["lookahead"]
        turns.setdefault(system, []).append(turn_of(of_ranks))
        decided[system] = {name: of_ranks[0][name] for name in bench_report.DECISIONS if name in of_ranks[0]}
    sample_s = max(answer["sample_s"] for answer in answers)
    baseline = [turn["epoch_s"] for turn in turns["distdgl", 0]]
    documents = []
    for (system, lookahead), of_system in turns.items():
        epochs = [turn["epoch_s"] for turn in of_system]
        medians = {name: statistics.median(turn[name] for turn in of_system) for name in ("epoch_s", "fetch_s", "compute_s")}
        with_sampling = [(theirs + sample_s) / (ours + sample_s) for theirs, ours in zip(baseline, epochs)]
        documents.append(
            {
                **{key: plan[key] for key in ("graph", "link", "dim", "machines", "model", "batch", "threads")},
                "buffer": 0.1 if system == "default" else plan["buffer"],
                "minibatches": answers[0]["minibatches"],
                "system": system,
                "lookahead": lookahead,
                **{f"{name}_median": seconds for name, seconds in medians.items()},
                "sample_s": sample_s,
                "times_distdgl": statistics.median(theirs / ours for theirs, ours in zip(baseline, epochs)),
                "times_distdgl_with_sampling": statistics.median(with_sampling),
                "wire_bytes": statistics.median(turn["wire_bytes"] for turn in of_system),
                "rows_fetched": statistics.median(turn["rows_fetched"] for turn in of_system),
                "exact": all(turn["exact"] for turn in of_system),
                "epoch_s": epochs,
                "others": [turn["others"] for turn in of_system],
                **decided[system, lookahead],
            }
        )
    return documents


def pulls_alone(folder: Path, measured: dict) -> list[dict]:
    """Single pulls by the KVStore and by the library, and as many bytes by a plain socket stream, unshaped."""
    base = {"graph": "rmat", "machines": 2, "link": "unshaped", "model": "sage", **measured, "systems": [], "alone": [10_000, 100]}
    print("pulls alone  floats   KVStore, ms   library, ms    stream, ms   x KVStore    x stream")
    answers = []
    for dim in (100, 602):
        for found in carry_out(folder, parted(folder, "rmat", 2), {**base, "dim": dim})[0]["alone"]:
            theirs, ours, plain = (1e3 * found[f"{way}_s"] for way in ("kvstore", "rudder", "stream"))
            times = f"{theirs:14.3f}{ours:14.3f}{plain:14.3f}{theirs / ours:12.2f}{plain / ours:12.2f}"
            print(f"{found['rows']:>11}{dim:>8}{times}", flush=True)
            answers.append(found)
    return answers


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = {"type": lambda text: text.split(",")}
    parser.add_argument("folder", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a short form: fewer graphs, links and systems")
    parser.add_argument("--alone", action="store_true", help="single pulls only; they come first too where no part of the rest is named")
    parser.add_argument("--graphs", **listed, help="of rmat, sbm, debian")
    parser.add_argument("--links", **listed, help="unshaped, or rates of tc(8); 1gbit:0.25: the first machine sends at a quarter")
    parser.add_argument("--dims", **listed, help="floats a row: of 602 and 100, for debian of 128 and 602")
    parser.add_argument("--machines", **listed, default=["2"])
    parser.add_argument("--models", **listed, help="of sage, gat")
    parser.add_argument("--systems", **listed, help=f"of {', '.join(SYSTEMS)}; after + any number of minibatches ahead")
    parser.add_argument("--rounds", type=int, help="turns of each system; 3, or 2 of the short form")
    own = "your own partitions, of a graph named `graph` with labels, train_mask and feat<dim>"
    parser.add_argument("--part-config", type=Path, help=own)
    parser.add_argument("--buffer", type=float, default=0.25, help="share of the halo nodes")
    parser.add_argument("--batch", type=int, default=500)
    return parser.parse_args()


def main() -> None:
    """Measures what is asked for, prints tables, and writes document and figure after each configuration."""
    machines.enter()
    asked = arguments()
    folder, cores = asked.folder.resolve(), os.cpu_count() or 1
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    document: dict = {"commit": os.environ.get("RUDDER_COMMIT", ""), "cores": cores, "alone": [], "runs": []}
    measured = {"buffer": asked.buffer, "batch": asked.batch, "epochs": 2, "turns": 30}
    measured["rounds"] = asked.rounds or (2 if asked.quick else 3)
    # For other programs of this machine to come to their end, in each job.
    measured["patience_s"] = 40 if asked.quick else 300
    part_named = any((asked.graphs, asked.links, asked.dims, asked.models, asked.systems, asked.part_config, asked.machines != ["2"]))
    if asked.alone or not part_named:
        document["alone"] = pulls_alone(folder, {**measured, "threads": 1})
    for configuration in [] if asked.alone else configurations(asked):
        began = time.monotonic()
        parts = asked.part_config or parted(folder, configuration["graph"], configuration["machines"])
        threads = max(1, cores // configuration["machines"])
        plan = {**configuration, **measured, "threads": threads, "alone": [], "systems": systems_of(asked)}
        runs = runs_of(plan, carry_out(folder, parts.resolve(), plan))
        document["runs"] += runs
        print("\n".join(["", bench_report.table(runs), *bench_report.findings(runs), f"({time.monotonic() - began:.0f} s)"]), flush=True)
        asked.json.with_suffix(".svg").write_text(bench_report.figure(document["runs"]))
        asked.json.write_text(json.dumps(document, indent=1))
    asked.json.write_text(json.dumps(document, indent=1))
    print(f"\nwritten: {asked.json}" + (f" and {asked.json.with_suffix('.svg')}" if document["runs"] else ""))
    if not all(run["exact"] for run in document["runs"]):
        sys.exit("bench.py: rows differ from the KVStore's")


if __name__ == "__main__":
    main()
