"""`python -m benchmarks setup | ppo | dqn | sac | impala | appo | offline | overhead | ...`."""

import argparse
import signal
import sys
from types import FrameType

from benchmarks import comparison, debug_yardstick, offline, overhead, sweep, trace_cost
from benchmarks.peers import environments
from benchmarks.workloads import WORKLOADS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the peers' environments under .bench/")
    for workload in WORKLOADS.values():
        about = f"{workload.title}, ours beside the peers"
        comparison.add_arguments(commands.add_parser(workload.name, help=about), workload)
    offline.add_arguments(commands.add_parser("offline", help=offline.__doc__))
    sweep.add_arguments(commands.add_parser("sweep", help=sweep.__doc__))
    overhead.add_arguments(commands.add_parser("overhead", help=overhead.__doc__))
    debug_yardstick.add_arguments(commands.add_parser("debug", help=debug_yardstick.__doc__))
    trace_cost.add_arguments(commands.add_parser("trace", help=trace_cost.__doc__))
    args = parser.parse_args(argv)
    if args.command == "setup":
        for environment in environments.ENVIRONMENTS.values():
            print(environments.ensure(environment))
        return 0
    run = {
        "offline": offline.main,
        "sweep": sweep.main,
        "overhead": overhead.main,
        "debug": debug_yardstick.main,
        "trace": trace_cost.main,
    }
    try:
        if args.command in WORKLOADS:
            return comparison.main(args, WORKLOADS[args.command])
        return run[args.command](args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _end(number: int, _frame: FrameType | None) -> None:
    """Leave through the finally blocks, so that no contestant is left running."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
