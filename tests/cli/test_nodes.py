"""Two nodes of one process each, started by torchrun and as srun does; here both are on one machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flowmatch_rl.modules.safe_globals  # noqa: F401 (a checkpoint holds objects of the package)
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.folders import run_folder
from flowmatch_rl.ranks import states_of_ranks
from tests.cli.support import CONF, TWO_MOONS, environment, flow_arguments
from tests.processes import free_port


def slurm(node: int) -> dict[str, str]:
    """What srun sets in the only task of a node."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(node),
        "SLURM_LOCALID": "0",
    }


def torchrun(node: int, port: int) -> list[str]:
    words = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"]
    return ["-m", "torch.distributed.run", *words, "--master-addr=127.0.0.1", f"--master-port={port}"]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_nodes_train_together_and_write_one_checkpoint(launcher: str, tmp_path: Path) -> None:
    args = flow_arguments("fit", TWO_MOONS, CONF / "trainer" / "ddp.yaml", trainer__default_root_dir=tmp_path)
    probe = [{"class_path": "tests.cli.probes.FlowRankReport", "init_args": {"folder": str(tmp_path)}}]
    args += ["--trainer.num_nodes=2", "--trainer.devices=1", f"--trainer.callbacks={json.dumps(probe)}"]
    port = free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, *(torchrun(node, port) if launcher == "torchrun" else []), "-m", "flowmatch_rl", *args],
            env=environment(**({} if launcher == "torchrun" else slurm(node) | {"MASTER_PORT": str(port)})),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    outputs = [node.communicate(timeout=280) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["world_size"] == second["world_size"] == 2
    assert first["weights"] == second["weights"] != first["start"]
    assert not set(first["batches"]) & set(second["batches"])
    assert [out.count("distance  ") for out, _ in outputs] == [1, 0]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(states_of_ranks(checkpoint["SampleData"])) == 2


def test_processes_that_do_not_know_each_other_s_folder_are_refused_in_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in slurm(1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"2 processes.*--trainer\.default_root_dir"):
        run_folder("two_moons")
    assert list(tmp_path.iterdir()) == []
