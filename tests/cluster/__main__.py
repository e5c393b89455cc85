"""`PYTHONPATH=tests python -m cluster up|down|status|clean|preflight|build`: a cluster from the shell.

`up` leaves the cluster running and prints how to use it; `down` ends those that `up` started; `clean` ends those whose
test run died before it could.
"""

import argparse
import sys
from pathlib import Path

from cluster import clients, embedded, preflight, providers
from cluster.cluster import CommandFailed
from cluster.gobuild import BuildFailed, build
from cluster.run import Record, Run, StartFailed, cgroups_of, processes_of, records


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="A real Kubernetes for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start an embedded cluster and leave it running")
    up.add_argument("--simulate", action="store_true", help="simulated nodes: no root needed, no container runs")
    down = commands.add_parser("down", help="end the clusters that `up` started")
    down.add_argument("id", nargs="*", help="only these (see `status`)")
    commands.add_parser("status", help="list the clusters that run")
    commands.add_parser("clean", help="end clusters whose test run is dead")
    commands.add_parser("preflight", help="say what this machine lacks")
    commands.add_parser("build", help="build and fetch every program now")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except (BuildFailed, CommandFailed, StartFailed, providers.Unavailable) as failure:
        print(f"cluster: {failure}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "up":
            return _up(arguments.simulate)
        case "down":
            for record in records():
                if record.id in arguments.id or (not arguments.id and record.owner is None):
                    _end(record)
        case "clean":
            embedded.end_orphans(_say)
        case "status":
            for record in records():
                kept = "of a dead test run" if record.orphaned else "of a test run" if record.owner else "kept"
                print(
                    f"{record.id}  {record.kind:10} {kept:18} {len(processes_of(Path(record.folder)))} processes  ",
                    end="",
                )
                print(f"{len(cgroups_of(record))} cgroups  {record.kubeconfig}")
        case "preflight":
            return _preflight()
        case "build":
            build(dict.fromkeys((*embedded.NODE_PROJECTS, *embedded.SIMULATED_PROJECTS)), _say)
            clients.find(_say)
    return 0


def _up(simulate: bool) -> int:
    if lacking := preflight.for_simulated_nodes() if simulate else preflight.for_real_node():
        raise StartFailed("this machine lacks what the cluster needs:\n  " + "\n  ".join(lacking))
    made = embedded.start(_say, owned=False, simulate=simulate)
    print(f"export KUBECONFIG={made.kubeconfig}")
    print(f"export PATH={made.clients.kubectl.parent}:$PATH")
    return 0


def _preflight() -> int:
    purposes = {
        "a real node": preflight.for_real_node(),
        "simulated nodes": preflight.for_simulated_nodes(),
        "building images": preflight.for_images(),
    }
    for name, lacking in purposes.items():
        print(f"{name}: " + ("everything is there" if not lacking else "".join(f"\n  {reason}" for reason in lacking)))
    return 1 if any(purposes.values()) else 0


def _end(record: Record) -> None:
    Run(record).end()
    _say(f"ended {record.kind} cluster {record.id}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
