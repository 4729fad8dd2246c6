"""The DistDGL adapter beside DistDGL: epochs and single fetches on shaped links between machines that are namespaces of this one.

    bench.py FOLDER [--quick] [--json FILE] [--part-config FILE --machines N --dim N]

FOLDER keeps graphs and logs; rudder_dgl is the one that PYTHONPATH gives. All systems of a configuration run within one job, in turns
whose order alternates, on the same recorded epochs, each of them sampled anew; ratios are medians over these turns. DistDGL's memory
allocator is tuned on both sides as one would tune it (MALLOC_*), which halves its fetches of wide rows.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import machines

HERE = Path(__file__).resolve().parent
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
BASELINES = [("distdgl", 0), ("distdgl-overlap", 1)]
# Overlap with the buffer as landing room, caching alone, both; then what decides on the buffer.
QUICK_SYSTEMS = [*BASELINES, ("off", 0), ("off", 1), ("off", 16), ("periodic", 0), ("lfu", 0), ("window", 8), ("window", 16)]
SYSTEMS = [*QUICK_SYSTEMS[:5], ("fixed", 0), ("fixed", 16), ("periodic", 0), ("periodic", 16), ("lfu", 0), ("lfu", 16), *QUICK_SYSTEMS[7:]]
LIMIT_S = 1500
GRAPH = ["--nodes", "100000", "--edges", "1000000", "--dims", "100", "602"]


def configurations(quick: bool) -> list[dict]:
    """What is measured: graph, machines, link, floats a row, model."""
    base = {"graph": "rmat", "machines": 2, "link": "1gbit", "dim": 602, "model": "sage"}
    if quick:
        return [base, {**base, "link": None, "dim": 100}]
    return [
        {"graph": graph, "machines": count, "link": link, "dim": dim, "model": model}
        for graph in ("rmat", "sbm")
        for count in (2, 4)
        for dim in (602, 100)
        for link in ("1gbit", "10gbit", None)
        for model in (("sage", "gat") if count == 2 else ("sage",))
    ]


def carry_out(folder: Path, parts: Path, plan: dict) -> list[dict]:
    """Runs a job for a plan, and gives what each trainer answers."""
    logs = folder / "logs" / "bench"
    logs.mkdir(parents=True, exist_ok=True)
    with machines.Machines(plan["machines"], plan["link"]) as hosts:
        path = logs / "plan.json"
        path.write_text(json.dumps({**plan, "addresses": hosts.addresses}))
        job = machines.Job(hosts, parts, logs, environment=ALLOCATOR)
        job.run(HERE / "bench_trainer.py", str(path))
        statuses = job.wait(LIMIT_S)
    if any(status != 0 for status in statuses):
        print("\n".join(job.log_of(rank).read_text(errors="replace")[-3000:] for rank in range(len(statuses))))
        sys.exit(f"bench.py: trainers ended with statuses {statuses}")
    return [json.loads(path.with_suffix(f".{rank}.json").read_text()) for rank in range(len(statuses))]


def runs_of(plan: dict, answers: list[dict]) -> list[dict]:
    """One document a system: medians over turns, of the slowest trainer; bytes and rows of all trainers, for one epoch."""
    turns: dict[tuple[str, int], list[dict]] = {}
    for of_ranks in zip(*(answer["runs"] for answer in answers)):
        first = of_ranks[0]
        turns.setdefault((first["system"], first["lookahead"]), []).append(
            {
                "epoch_s": statistics.median(map(max, zip(*(run["epoch_s"] for run in of_ranks)))),
                "fetch_s": statistics.median(map(max, zip(*(run["fetch_s"] for run in of_ranks)))),
                "wire_bytes": sum(run["wire_bytes"] for run in of_ranks),
                "rows_fetched": sum(run["rows_fetched"] for run in of_ranks),
                "exact": all(run["exact"] for run in of_ranks),
            }
        )
    sample_s = max(answer["sample_s"] for answer in answers)
    baseline = [turn["epoch_s"] for turn in turns["distdgl", 0]]
    documents = []
    for (system, lookahead), of_system in turns.items():
        epochs = [turn["epoch_s"] for turn in of_system]
        ratios = [theirs / ours for theirs, ours in zip(baseline, epochs)]
        with_sampling = [(theirs + sample_s) / (ours + sample_s) for theirs, ours in zip(baseline, epochs)]
        documents.append(
            {
                **{key: plan[key] for key in ("graph", "dim", "machines", "model", "buffer", "batch")},
                "link": plan["link"] or "unshaped",
                "system": system,
                "lookahead": lookahead,
                "epoch_s_median": statistics.median(epochs),
                "fetch_s_median": statistics.median(turn["fetch_s"] for turn in of_system),
                "sample_s": sample_s,
                "times_distdgl": statistics.median(ratios),
                "times_distdgl_with_sampling": statistics.median(with_sampling),
                "wire_bytes": statistics.median(turn["wire_bytes"] for turn in of_system),
                "rows_fetched": statistics.median(turn["rows_fetched"] for turn in of_system),
                "exact": all(turn["exact"] for turn in of_system),
            }
        )
    return documents


def show(plan: dict, documents: list[dict]) -> None:
    """Prints a configuration's table."""
    link = plan["link"] or "unshaped"
    print(f"\n{plan['graph']}, {plan['machines']} machines, {link}, {plan['dim']} floats, {plan['model']}, buffer {plan['buffer']:.0%}")
    print(f"{'system':24}{'epoch, s':>10}{'fetch, s':>10}{'x distdgl':>11}{'MB on the wire':>16}{'rows':>10}  exact")
    for run in documents:
        name = run["system"] + (f" +{run['lookahead']}" if run["lookahead"] else "")
        print(
            f"{name:24}{run['epoch_s_median']:10.3f}{run['fetch_s_median']:10.3f}{run['times_distdgl']:11.2f}"
            f"{run['wire_bytes'] / 1e6:16.1f}{run['rows_fetched']:10.0f}  {'yes' if run['exact'] else 'NO'}",
            flush=True,
        )


def main() -> None:
    """Measures what is asked for, prints tables, and writes the document."""
    machines.enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a short form: fewer graphs, links and systems")
    parser.add_argument("--json", type=Path)
    own = "your own partitions, of a graph named `graph` with labels, train_mask and feat<dim>"
    parser.add_argument("--part-config", type=Path, help=own)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--dim", type=int, default=602)
    parser.add_argument("--buffer", type=float, default=0.25, help="share of the halo nodes")
    parser.add_argument("--batch", type=int, default=500)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    document: dict = {"commit": os.environ.get("RUDDER_COMMIT", ""), "cores": os.cpu_count(), "alone": [], "runs": []}
    measured = {"buffer": asked.buffer, "batch": asked.batch, "epochs": 2, "rounds": 3, "turns": 30}

    fetches = {"graph": "rmat", "machines": 2, "link": None, "model": "sage", **measured, "systems": [], "alone": [10_000, 100]}
    print("fetch alone  floats   KVStore, ms   library, ms    stream, ms   x KVStore    x stream")
    for dim in (100, 602):
        for found in carry_out(folder, machines.partitions(folder, "rmat", 2, *GRAPH), {**fetches, "dim": dim})[0]["alone"]:
            theirs, ours, plain = (1e3 * found[f"{way}_s"] for way in ("kvstore", "rudder", "stream"))
            times = f"{theirs:14.3f}{ours:14.3f}{plain:14.3f}{theirs / ours:12.2f}{plain / ours:12.2f}"
            print(f"{found['rows']:>11}{dim:>8}{times}", flush=True)
            document["alone"].append(found)

    chosen = configurations(asked.quick)
    if asked.part_config:
        own = {"graph": str(asked.part_config), "machines": asked.machines, "dim": asked.dim, "model": "sage"}
        chosen = [{**own, "link": link} for link in ("1gbit", None)]
    for configuration in chosen:
        began = time.monotonic()
        parts = asked.part_config or machines.partitions(folder, configuration["graph"], configuration["machines"], *GRAPH)
        plan = {**configuration, **measured, "alone": [], "systems": QUICK_SYSTEMS if asked.quick else SYSTEMS}
        documents = runs_of(plan, carry_out(folder, parts.resolve(), plan))
        show(plan, documents)
        document["runs"] += documents
        print(f"({time.monotonic() - began:.0f} s)")
    if asked.json:
        asked.json.write_text(json.dumps(document, indent=1))
    if not all(run["exact"] for run in document["runs"]):
        sys.exit("bench.py: rows differ from the KVStore's")


if __name__ == "__main__":
    main()
