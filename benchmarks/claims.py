"""What the coordinator spends on each claim, by the number of rollout workers.

    python -m benchmarks.claims [--workers 10 100 1000] [--versions 20]

One process stands for all workers: it claims for each, and for each version of the learner's it
publishes weights. What counts is the coordinator's own CPU time, not how fast one process can ask.
"""

import argparse
import asyncio
import time
from typing import Any

import ray

from pipelines.coordinator import Coordinator
from pipelines.flow import FlowControl
from pipelines.ray_session import start_ray, stop_ray


class Timed(Coordinator):
    async def cpu_s(self) -> float:
        return time.process_time()


async def drive(actor: Any, workers: int, versions: int, weights: bytes) -> None:
    """Every worker makes a fragment of each version; the learner consumes them."""
    for worker in range(workers):
        await actor.register.remote(f"w{worker}", 0)
    result = {"training_iteration": 0, "stopped_by": None}
    publishing = asyncio.ensure_future(_await(actor.advance.remote(0, weights, None)))
    for version in range(versions):
        await publishing
        told = {"fragment_s": 0.01, "aborted_episodes": 0, "failures": []}
        claims = [
            _await(actor.claim.remote(worker, 0, f"{version}/{worker}", told))
            for worker in range(workers)
        ]
        granted = await asyncio.gather(*claims)
        assert sorted(each.fragment_id for each in granted) == list(
            range(version * workers, (version + 1) * workers)
        )
        publishing = asyncio.ensure_future(
            _await(actor.advance.remote(version + 1, weights, result))
        )
        await _await(actor.next_result.remote())
    await publishing


async def _await(ref: Any) -> Any:
    return await ref


def measure(workers: int, versions: int, weight_bytes: int) -> tuple[float, float]:
    """Microseconds of the coordinator's CPU for each claim, and claims a second as asked here."""
    flow = FlowControl(fragments_per_version=workers, max_policy_lag=1, num_workers=workers)
    actor = ray.remote(num_cpus=0, max_concurrency=10_000)(Timed).remote(flow)
    before = ray.get(actor.cpu_s.remote())
    start = time.perf_counter()
    asyncio.run(drive(actor, workers, versions, bytes(weight_bytes)))
    spent, wall = ray.get(actor.cpu_s.remote()) - before, time.perf_counter() - start
    ray.kill(actor)
    return 1e6 * spent / (workers * versions), workers * versions / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--weight-bytes", type=int, default=20_000)
    args = parser.parse_args()
    start_ray()
    for workers in args.workers:
        cost, rate = measure(workers, args.versions, args.weight_bytes)
        print(f"{workers} workers: {cost:.0f} us of CPU a claim, {rate:,.0f} claims/s", flush=True)
    stop_ray()


if __name__ == "__main__":
    main()
