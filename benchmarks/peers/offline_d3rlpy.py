"""d3rlpy's BC or CQL on given transitions, as matched; run by .bench/d3rlpy's python."""

import argparse
import itertools
import json
import time

import d3rlpy  # type: ignore[import-not-found]
import numpy as np
import torch

from benchmarks.peers.matched import OFFLINE as MATCHED


def main() -> None:
    """Print how long each epoch took, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["bc", "cql"])
    parser.add_argument("data", help="npz with obs, action, reward, terminated, truncated")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True, help="of each epoch")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = np.load(args.data)
    columns = [rows[name] for name in ("obs", "action", "reward", "terminated", "truncated")]
    dataset = d3rlpy.dataset.MDPDataset(*columns)
    encoder = d3rlpy.models.VectorEncoderFactory(list(MATCHED.hidden))
    common = {"batch_size": MATCHED.minibatch_rows, "gamma": MATCHED.gamma}
    if args.work == "bc":
        config = d3rlpy.algos.BCConfig(learning_rate=MATCHED.lr, encoder_factory=encoder, **common)
    else:
        config = d3rlpy.algos.CQLConfig(
            actor_learning_rate=MATCHED.lr,
            critic_learning_rate=MATCHED.lr,
            actor_encoder_factory=encoder,
            critic_encoder_factory=encoder,
            n_action_samples=MATCHED.num_samples,
            **common,
        )
    algo = config.create(device="cpu:0")
    marks = [(time.perf_counter(), time.process_time())]

    def mark(*_: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    algo.fit(
        dataset,
        n_steps=args.epochs * args.updates,
        n_steps_per_epoch=args.updates,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        epoch_callback=mark,
    )
    epochs = [{"wall_s": b[0] - a[0], "cpu_s": b[1] - a[1]} for a, b in itertools.pairwise(marks)]
    print(json.dumps({"updates": args.updates, "epochs": epochs}))


if __name__ == "__main__":
    main()
