"""Has train_net's command line and leaves its files, but learns nothing: for tests of studies.

How long one takes, which runs fail, and where to write
down each start and end are told by the environment; the config that KEY VALUE pairs change is
given there, too, as a file.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

ITERATIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    config = yaml.safe_load(Path(os.environ["STUB_CONFIG"]).read_text())
    for key, text in zip(args.opts[::2], args.opts[1::2], strict=True):
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        node[name] = value
    output = Path(config["OUTPUT_DIR"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    seed = config["SEED"]
    print("a line of the log", flush=True)

    def note(what: str) -> None:
        event = {
            "what": what,
            "folder": str(output),
            "pid": os.getpid(),
            "time": time.monotonic(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        with open(os.environ["STUB_EVENTS"], "a") as file:
            file.write(json.dumps(event) + "\n")

    def stop(number: int, frame: object) -> None:
        note("stop")
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if args.eval_only:
        assert Path(config["MODEL"]["WEIGHTS"]).read_text() == f"weights of seed {seed}"
    else:
        train(output, note)
    failure = os.environ.get("STUB_FAILS")
    if failure == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if failure == f"{seed} silently":
        sys.exit(3)
    if failure == str(seed):
        print("error: out of luck", file=sys.stderr)
        print("a last line that says less", file=sys.stderr)
        sys.exit(2)
    if not args.eval_only:
        (output / "model_final.pth").write_text(f"weights of seed {seed}")
    # The same noise for all runs of a seed, so that differences between them are exact.
    ap = 50 + seed**2 + 100 * config["SOLVER"]["BASE_LR"] - config["TEST"]["REFERENCES"]["NUM"]
    folder = output / "inference" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"bbox": {"AP": ap / 2}, "vid": {"AP50": ap, "AP50-fast": None}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    note("end")


def train(output: Path, note) -> None:
    checkpoint = output / "last_checkpoint"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    note(f"start at {first}")
    for iteration in range(first, ITERATIONS):
        time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
        with (output / "metrics.json").open("a") as file:
            file.write(json.dumps({"iteration": iteration, "lr": 0.1}) + "\n")
        (output / f"model_{iteration:07d}.pth").touch()
        checkpoint.write_text(str(iteration + 1))


if __name__ == "__main__":
    main()
