"""Trains on two machines: two network namespaces of this one, each with its own name and address, on a cable.

    sudo python tests/two_machines.py --work /tmp/two

The machines share a file system and nothing else that a launcher could use: their loopback interfaces are
their own, and neither reaches the network of this machine. The same short run is done by two processes on
one machine, by torchrun on both machines, and by the deepspeed launcher with a hostfile on both; the weights
must be equal to the last bit. Then a machine's cable is cut in the middle of a run: the processes of both
must end in one line that names the checkpoint, and the run goes on from there to the same weights.

Needs root (network namespaces) and `ip`. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(ROOT / "tests"))

from safetensors.torch import load_file  # noqa: E402
from tiny_run import arguments, make_shards_of  # noqa: E402

from train.distributed import LAUNCH_VARIABLES  # noqa: E402

NODES = ("leantad-node1", "leantad-node2")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
PORT = 29517
SECONDS = 300.0  # of one run
GOES_ON = "--resume goes on from"
LONG = 30  # epochs of the run whose cable is cut
BIN = Path(sys.executable).parent


def command(*arguments: str, check: bool = True) -> None:
    """Run a command of the system; what it says is shown if it fails."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def machines() -> Iterator[None]:
    """Two namespaces with an address each, joined by a pair of interfaces; gone when the block ends."""
    remove_machines()
    try:
        for node in NODES:
            hosts = Path("/etc/netns") / node / "hosts"  # `ip netns exec` shows it as /etc/hosts
            hosts.parent.mkdir(parents=True, exist_ok=True)
            names = (f"{address} {name}" for address, name in zip(ADDRESSES, NODES, strict=True))
            hosts.write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
            command("ip", "netns", "add", node)
        ends = [("name", "eth0", "netns", node) for node in NODES]
        command("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for node, address in zip(NODES, ADDRESSES, strict=True):
            command("ip", "-n", node, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                command("ip", "-n", node, "link", "set", device, "up")
        yield
    finally:
        remove_machines()


def remove_machines() -> None:
    """Take the namespaces away, if they are there."""
    for node in NODES:
        command("ip", "netns", "delete", node, check=False)
        hosts = Path("/etc/netns") / node / "hosts"
        hosts.unlink(missing_ok=True)
        if hosts.parent.exists():
            hosts.parent.rmdir()


def start(command_line: Sequence[str], log: Path, node: str | None = None) -> subprocess.Popen[bytes]:
    """Start a command, on one of the machines if `node` is given; its output goes to a file."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    if node is not None:
        rename = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', node]
        command_line = ["ip", "netns", "exec", node, *rename, *command_line]
    with open(log, "wb") as output:
        return subprocess.Popen(
            command_line, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )


def end_of(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> list[int]:
    """Wait for all; their exit codes. Their output is shown if they take too long."""
    deadline = time.monotonic() + SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise SystemExit(f"not done after {SECONDS:.0f} s:\n{shown(logs)}") from None
    return [process.returncode for process in processes]


def shown(logs: Sequence[Path]) -> str:
    """The last lines of files."""
    return "\n".join(f"{log}:\n" + "\n".join(log.read_text().splitlines()[-25:]) for log in logs)


def torchrun(script: Sequence[str], nodes: int) -> list[list[str]]:
    """torchrun's command line for each machine, or one for two processes on one machine."""
    if nodes == 1:
        return [[str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", *script]]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{NODES[0]}:{PORT}", "--rdzv_id", "two"]
    return [[str(BIN / "torchrun"), "--nnodes", "2", "--nproc_per_node", "1", *rendezvous, *script]] * 2


def deepspeed(script: Sequence[str], hostfile: Path) -> list[list[str]]:
    """The deepspeed launcher's command line for each machine, with a hostfile and without ssh."""
    hostfile.write_text("".join(f"{node} slots=1\n" for node in NODES))
    where = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", NODES[0], "--master_port", str(PORT)]
    return [[str(BIN / "deepspeed"), *where, "--node_rank", str(rank), *script] for rank in range(2)]


def run(name: str, command_lines: Sequence[Sequence[str]], work: Path) -> None:
    """One run to its end, on as many machines as there are command lines."""
    logs = [work / f"{name}.{number}.log" for number in range(len(command_lines))]
    nodes = NODES if len(command_lines) > 1 else (None,)
    started = [start(line, log, node) for line, log, node in zip(command_lines, logs, nodes, strict=True)]
    codes = end_of(started, logs)
    if any(codes):
        raise SystemExit(f"{name}: exit codes {codes}\n{shown(logs)}")


def is_equal(out: Path, reference: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, other = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (out, reference))
    return one.keys() == other.keys() and all(one[name].equal(value) for name, value in other.items())


def cut_cable(command_lines: Sequence[Sequence[str]], out: Path, work: Path) -> list[str]:
    """Start a run on both machines, cut the cable after its first checkpoint; what both said."""
    logs = [work / f"cut.{number}.log" for number in range(2)]
    started = [start(line, log, node) for line, log, node in zip(command_lines, logs, NODES, strict=True)]
    deadline = time.monotonic() + SECONDS
    while not (out / "checkpoints" / "last").exists():
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            raise SystemExit(f"no checkpoint:\n{shown(logs)}")
        time.sleep(0.05)
    command("ip", "-n", NODES[1], "link", "set", "eth0", "down")
    deadline = time.monotonic() + 60
    while not all(GOES_ON in log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.2)
    command("ip", "-n", NODES[1], "link", "set", "eth0", "up")
    for process in started:  # the launcher may wait much longer for the other machine's
        process.terminate()
    end_of(started, logs)
    return [log.read_text() for log in logs]


def main() -> None:
    """Do the runs one after the other and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and logs")
    parser.add_argument("--zero", type=int, default=1, help="ZeRO stage")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True)
    shards = make_shards_of(work)

    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"]["stage"] = options.zero
    (work / "ds_config.json").write_text(json.dumps(config))

    def script(out: str, **changes: object) -> list[str]:
        changes |= {"optimizer.batch_size": 1, "run.ds_config": work / "ds_config.json"}
        changes = {name.replace(".", "__"): value for name, value in changes.items()}
        return [str(ROOT / "train" / "main.py"), *arguments(shards, work / out, **changes)]

    lines = {
        "torchrun": torchrun(script("torchrun"), 2),
        "deepspeed": deepspeed(script("deepspeed"), work / "hostfile"),
    }
    failed = False
    with machines():
        run("one", torchrun(script("one"), 1), work)
        for name, command_lines in lines.items():
            run(name, command_lines, work)
            failed |= differs(name, work)
        patient = {"run.epochs": LONG, "run.checkpoint_every": 1, "run.lost_after_seconds": 5}
        again = [*script("cut", **patient), "--resume"]
        for text in cut_cable(torchrun(again, 2), work / "cut", work):
            said = [line for line in text.splitlines() if GOES_ON in line]
            print(*(said or ["NO WORD of what it goes on from"]), sep="\n", flush=True)
            failed |= not said
        run("resumed", torchrun(again, 2), work)
        run("undisturbed", torchrun(script("undisturbed", **patient), 1), work)
        failed |= differs("cut", work, "undisturbed")
    raise SystemExit(failed)


def differs(name: str, work: Path, reference: str = "one") -> bool:
    """Whether a run of both machines ended otherwise than that on one; says which."""
    equal = is_equal(work / name, work / reference)
    print(f"{name}: weights {'equal' if equal else 'NOT EQUAL'} to those of one machine", flush=True)
    return not equal


if __name__ == "__main__":
    main()
