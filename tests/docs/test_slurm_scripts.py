"""tools/slurm: the scripts' commands, with stand-ins for Slurm's programs and for clab-d2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clab_d2_cli.tools import train_net

SLURM = Path(__file__).resolve().parents[2] / "tools" / "slurm"
SCRIPTS = {"one_machine": 1, "several_machines": 2}
#: Two machines, one task on each.
SRUN = """
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_NODEID=$node "$@" || status=$?
done
exit ${status:-0}
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Stand-ins in a folder; what they were called with stands in ``calls``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "srun": SRUN,
        "clab-d2": 'printf "%s\\n" "$*" >> "$CALLS"; exit "$TRAIN_STATUS"',
        "squeue": '[ -z "$CANCELLED" ] && echo 7 RUNNING; true',
        "scontrol": 'if [ "$1" = show ]; then echo first; echo second; '
        'else printf "scontrol %s\\n" "$*" >> "$CALLS"; fi',
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def run(name: str, programs: Path, status: int = 0, cancelled: str = "") -> tuple[int, list[str]]:
    """Exit status of a script, and the calls of training and requeueing."""
    calls = programs.parent / "calls"
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "TRAIN_STATUS": str(status),
        "CANCELLED": cancelled,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": str(SCRIPTS[name]),
        "SLURM_GPUS_ON_NODE": "4",
    }
    done = subprocess.run(
        ["bash", str(SLURM / f"{name}.sbatch"), "C.yaml", "SOLVER.STEPS", "(1, 2)"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_training_of_every_machine(name: str, programs: Path) -> None:
    status, calls = run(name, programs)
    assert status == 0 and len(calls) == SCRIPTS[name]
    for rank, call in enumerate(calls):
        words = call.split(" ")
        assert words[0] == "train"
        args = train_net.make_parser().parse_args(words[1:])
        assert args.config_file == "C.yaml" and args.num_gpus == 4 and args.resume
        assert args.opts == ["SOLVER.STEPS", "(1,", "2)"]
        assert (args.num_machines, args.machine_rank) == (SCRIPTS[name], rank)
        if SCRIPTS[name] > 1:
            assert args.dist_url == "tcp://first:20007"


@pytest.mark.parametrize("name", SCRIPTS)
def test_stopped_training_is_queued_again(name: str, programs: Path) -> None:
    status, calls = run(name, programs, status=143)
    assert status == 143 and calls[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("status", "cancelled"), [(2, ""), (143, "yes")])
def test_other_ends_are_ends(name: str, status: int, cancelled: str, programs: Path) -> None:
    found, calls = run(name, programs, status, cancelled)
    assert found == status
    assert not [call for call in calls if call.startswith("scontrol")]
