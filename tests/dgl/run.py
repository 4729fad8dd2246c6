"""Holds the DistDGL adapter against DistDGL itself, on 2 and 4 machines that are namespaces of this one.

    run.py FOLDER [JOB]...     FOLDER keeps graphs and logs; rudder_dgl is the one that PYTHONPATH gives

Ends with status 77 where this system does not let it make namespaces.
"""

import sys
import time
from pathlib import Path

import machines

HERE = Path(__file__).resolve().parent
LIMIT_S = 150

# name: scenario, graph, machines, trainers a machine, samplers a trainer; a graph `-graphbolt` is in GraphBolt's form
JOBS = {
    "whole": ("whole", "rmat", 2, 1, 1),
    "four-machines": ("exact", "rmat", 4, 1, 0),
    "two-trainers-two-types": ("exact", "shop", 2, 2, 0),
    "graphbolt": ("exact", "rmat-graphbolt", 2, 1, 0),
    "trainer-killed": ("trainer_killed", "rmat", 2, 1, 0),
    "trainer-of-two-killed": ("trainer_killed", "rmat", 2, 2, 0),
    "server-killed": ("server_killed", "rmat", 2, 1, 0),
}


def failure(job: machines.Job, scenario: str, victim: int, killed: Path) -> str | None:
    """What went wrong in a started job, if anything did. victim: the rank that trainer_killed kills."""
    if scenario == "server_killed":
        deadline = time.monotonic() + LIMIT_S
        while any("READY" not in job.log_of(rank).read_text() for rank in range(len(job.ranks))):
            if time.monotonic() > deadline or any(trainer.poll() for trainer in job.ranks):
                job.end()
                return "the trainers did not come to where the server is to be killed"
            time.sleep(0.05)
        job.servers[-1].kill()
        job.servers[-1].wait()
        killed.touch()
    dead = {victim} if scenario == "trainer_killed" else set()
    statuses = job.wait(LIMIT_S, dead)
    for rank, status in enumerate(statuses):
        if status is None:
            return f"trainer {rank} had not ended, after {LIMIT_S} s or another's failure: {statuses}"
        if rank in dead:
            if status == 0:
                return f"trainer {rank} was to be killed, and was not"
        elif status != 0 or "PASSED" not in job.log_of(rank).read_text():
            return f"trainer {rank} ended with status {status}"
    return None


def main() -> None:
    """Runs the jobs named, or all."""
    machines.enter()
    folder = Path(sys.argv[1]).resolve()
    failed = False
    for name in sys.argv[2:] or JOBS:
        scenario, kind, count, trainers, samplers = JOBS[name]
        began = time.monotonic()
        kind, _, form = kind.partition("-")
        parts, logs = machines.partitions(folder, kind, count, *([f"--{form}"] if form else [])), folder / "logs" / name
        killed = logs / "killed"
        killed.unlink(missing_ok=True)
        victim = (count - 1) * trainers
        environment = {"KILLED": str(killed), "LIMIT_S": str(LIMIT_S), "GRAPHBOLT": form, "VICTIM": str(victim)}
        with machines.Machines(count) as hosts:
            job = machines.Job(hosts, parts, logs, trainers, samplers, environment)
            job.run(HERE / "trainer.py", scenario)
            wrong = failure(job, scenario, victim, killed)
        print(f"{f'FAILED {name}: {wrong}' if wrong else f'ok {name}'} ({time.monotonic() - began:.0f} s)", flush=True)
        if wrong:
            failed = True
            for log in sorted(logs.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-30:]
                print("\n".join([f"--- {log}", *lines]), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
