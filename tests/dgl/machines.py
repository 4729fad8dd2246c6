"""Machines that are namespaces of this one: each has a network card, a host name and a /dev/shm of its own, joined by a bridge.

DistDGL names its shared memory without the partition's number and tells machines apart by their addresses, so that two machines on one
host need both of their own. All of it lives in a network namespace of the calling program (see `enter`): nothing of the host's network
is touched, and nothing is left when the program ends.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

SHM_BYTES = 8 << 30
ENTERED = "RUDDER_DGL_ENTERED"


def enter() -> None:
    """Runs this program again, in namespaces of its own, with all its processes killed when it ends. Returns there only.

    Without root it takes a user namespace, where the system grants one; where not, it says so and ends with status 77.
    """
    if os.environ.get(ENTERED):
        return
    # Where ip and tc are, which the PATH of one who is not root may lack.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    # Adding a bridge shows whether this system gives what is needed.
    trial = subprocess.run([*command, "ip", "link", "add", "trial", "type", "bridge"], capture_output=True, text=True)
    if trial.returncode != 0:
        reason = trial.stderr.strip().splitlines()
        print(
            "not run: machines of their own need network namespaces, for which this program must be root, or the system allow user"
            f" namespaces ({reason[-1] if reason else 'no reason given'})",
            file=sys.stderr,
        )
        sys.exit(77)
    os.environ[ENTERED] = "1"
    os.execvp(command[0], [*command, sys.executable, *sys.argv])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _times(rate: str, share: float) -> str:
    """A share of a rate of tc(8), in the same unit."""
    parts = re.fullmatch(r"([\d.]+)([a-z]+)", rate)
    if not parts:
        sys.exit(f"a share of {rate!r}: give a number and a unit, such as 1gbit")
    return f"{float(parts[1]) * share:g}{parts[2]}"


def partitions(folder: Path, kind: str, count: int, *options: str) -> Path:
    """The partitions of a graph of graphs.py, made where they are not there yet; their folder's name tells what they are made by."""
    script = Path(__file__).resolve().with_name("graphs.py")
    asked = [kind, "--machines", str(count), *options]
    recipe = hashlib.sha256("\0".join([script.read_text(), *asked]).encode()).hexdigest()[:12]
    parts = folder / f"{kind}{count}-{recipe}" / "graph.json"
    if not parts.exists():
        command = [sys.executable, str(script), kind, str(parts.parent), *asked[1:]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}:\n{done.stderr}")
    return parts


class Machines:
    """`count` machines with addresses 10.77.0.1 onwards.

    rate: what each network card sends and receives at most, as tc(8) writes it ("1gbit"); None leaves it alone. After a colon the share of
    it at which the first machine sends ("1gbit:0.25").
    """

    def __init__(self, count: int, rate: str | None = None) -> None:
        self.count = count
        self.addresses = [f"10.77.0.{machine + 1}" for machine in range(count)]
        self._holders: list[subprocess.Popen] = []
        self._rate, _, share = (rate or "").partition(":")
        self._slow_rate = _times(self._rate, float(share)) if share else self._rate

    def __enter__(self) -> "Machines":
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "switch", "type", "bridge")
        _run("ip", "link", "set", "switch", "up")
        for machine in range(self.count):
            self._add(machine)
        return self

    def _add(self, machine: int) -> None:
        name = f"machine{machine}"
        # The shell tells that it is ready by a line, and then keeps the namespaces until it is killed.
        script = f"mount -t tmpfs -o size={SHM_BYTES} tmpfs /dev/shm && hostname {name} && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "--mount", "--uts", "sh", "-c", script]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._holders.append(holder)
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name}: its namespaces could not be made")
        port = f"port{machine}"
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _run("ip", "link", "set", port, "master", "switch", "up")
        inside = self._inside(machine)
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "addr", "add", f"{self.addresses[machine]}/24", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        if self._rate:
            sent = self._slow_rate if machine == 0 else self._rate
            for where, device, rate in (([], port, self._rate), (inside, "eth0", sent)):
                _run(*where, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "1mb", "latency", "50ms")

    def _inside(self, machine: int) -> list[str]:
        return ["nsenter", "--target", str(self._holders[machine].pid), "--net", "--mount", "--uts"]

    def start(self, machine: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen:
        """Starts a command on a machine; what it writes goes to `log`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [*self._inside(machine), *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wire_bytes(self) -> int:
        """Bytes that all network cards have sent so far, headers included."""
        links = json.loads(_run("ip", "-stats", "-json", "link", "show", "type", "veth"))
        return sum(link["stats64"]["rx"]["bytes"] for link in links)

    def __exit__(self, *_: object) -> None:
        for machine, holder in enumerate(self._holders):
            _run("ip", "link", "del", f"port{machine}")
            holder.kill()
            holder.wait()
        _run("ip", "link", "del", "switch")


class Job:
    """A DistDGL job: one server a machine, and trainers, of a script that calls `dgl.distributed.initialize`.

    parts: the file that `dgl.distributed.partition_graph` wrote. logs: folder for what the processes write.
    """

    def __init__(
        self,
        machines: Machines,
        parts: Path,
        logs: Path,
        trainers: int = 1,
        samplers: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        ranks = machines.count * trainers
        addresses = logs / "ip_config.txt"
        addresses.write_text("".join(f"{address} 30050\n" for address in machines.addresses))
        self._machines, self._trainers, self._logs = machines, trainers, logs
        self._environment = {
            "DGL_DIST_MODE": "distributed",
            "DGL_IP_CONFIG": str(addresses),
            "DGL_CONF_PATH": str(parts),
            "DGL_NUM_SERVER": "1",
            "DGL_NUM_CLIENT": str(ranks * (1 + samplers)),
            "DGL_NUM_SAMPLER": str(samplers),
            "DGL_GRAPH_FORMAT": "csc",
            "DGLBACKEND": "pytorch",
            "MASTER_ADDR": machines.addresses[0],
            "MASTER_PORT": "30250",
            "WORLD_SIZE": str(ranks),
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self.servers: list[subprocess.Popen] = []
        self.ranks: list[subprocess.Popen] = []

    def run(self, script: Path, *arguments: str) -> None:
        """Starts all processes of the job."""
        command = [sys.executable, str(script), *arguments]
        for machine in range(self._machines.count):
            environment = {**self._environment, "DGL_ROLE": "server", "DGL_SERVER_ID": str(machine)}
            self.servers.append(self._machines.start(machine, command, environment, self._logs / f"server{machine}.log"))
            for local in range(self._trainers):
                rank = machine * self._trainers + local
                environment = {**self._environment, "DGL_ROLE": "client", "RANK": str(rank), "LOCAL_RANK": str(local)}
                self.ranks.append(self._machines.start(machine, command, environment, self.log_of(rank)))

    def log_of(self, rank: int) -> Path:
        """What a trainer writes."""
        return self._logs / f"trainer{rank}.log"

    def wait(self, seconds: float, may_die: Collection[int] = ()) -> list[int | None]:
        """The trainers' exit statuses; None for those that still ran after `seconds`, or when another one had failed that is not among
        those that may die. No process of the job lives on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            statuses = [trainer.poll() for trainer in self.ranks]
            failed = [rank for rank, status in enumerate(statuses) if status and rank not in may_die]
            if failed or None not in statuses:
                break
            time.sleep(0.05)
        statuses = [trainer.poll() for trainer in self.ranks]
        self.end()
        return statuses

    def end(self) -> None:
        """Kills what is left of the job."""
        for process in (*self.ranks, *self.servers):
            # A trainer and its samplers are a group, which outlives a trainer that was killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
