"""study/profiles/slurm on a real Slurm of one node, installed, started and removed by the test.

Skipped, with the reason, where it cannot be: it takes root and Debian's or Ubuntu's packages.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from patlib.study.grids import load_grid

ROOT = Path(__file__).parents[1]
ONE_NODE = ROOT / "study" / "slurm" / "one_node.sh"

GRID = """
blocks:
  - settings:
      dataset: synthetic
      image_size: [32, 40]
      model: segnet
      model_params: {width: 2, stages: 2}
      epochs: 1
      batch_size: 16
    methods:
      CE: {loss: ce}
      broken: {loss: ce, learning_rate: 1.0e+30}
    seeds: [0]
"""


@pytest.fixture
def slurm():
    up = subprocess.run([ONE_NODE, "up"], capture_output=True, text=True)
    if up.returncode:  # it has cleaned up
        reason = up.stderr.splitlines()[-1]
        assert reason.startswith("one_node.sh: "), up.stderr
        pytest.skip(reason)
    yield
    subprocess.run([ONE_NODE, "down"], check=True, capture_output=True)


def test_a_grid_on_slurm(slurm, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    good, broken = (run.name for run in load_grid(path))
    folders = [f"records={tmp_path / 'records'}", f"runs={tmp_path / 'runs'}"]
    command = ["snakemake", "-s", ROOT / "study" / "Snakefile", "--configfile", path]
    command += ["--config", *folders, "--profile", ROOT / "study" / "profiles" / "slurm"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    output = done.stdout
    assert done.returncode == 1, output
    assert {path.name for path in (tmp_path / "records").iterdir()} == {
        f"{good}.json",
        f"{good}.npz",
    }, output
    assert broken in output[output.index("1 of 2 runs have no record:") :]
    # Both were jobs of Slurm, each with a GPU, a CPU and a time of its own.
    show = ["scontrol", "show", "job", "--oneliner"]
    jobs = subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted("JobState=COMPLETED" in job for job in jobs) == [False, True], jobs
    for job in jobs:
        assert "TresPerJob=gres:gpu:1" in job and "NumCPUs=1" in job and "TimeLimit=02:00" in job
