#!/usr/bin/env bash
# Train by SLURM in an Apptainer image, and continue after a preemption or the time limit:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 examples/slurm_apptainer.sh \
#     -c conf/actor_critic/walker_run.yaml -c conf/trainer/ddp.yaml --trainer.num_nodes 2 --trainer.devices 8
#
# IMAGE is the image, a file or a folder, flowmatch-rl.sif unless set; RUNS a folder that all nodes share, for the runs and
# their tracking.
#SBATCH --job-name=flowmatch-rl
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail

IMAGE=${IMAGE:-flowmatch-rl.sif}
RUNS=${RUNS:-$PWD/runs}
mkdir -p "$RUNS"

# Apptainer without setuid serves an image file by a process beside the run, which must live until the checkpoint is written.
if [[ -f $IMAGE ]] && scontrol show config | grep '^ProctrackType *= proctrack/linuxproc$'; then
  echo "SLURM sends SIGTERM to every process here: make the image a folder, by apptainer build --sandbox" >&2
fi

# One process per task; its rank comes from SLURM. A requeued job has the number of the first one, and so its folder.
status=0
srun --kill-on-bad-exit=1 apptainer exec --nv --pwd /workspace --bind "$RUNS:/workspace/runs" "$IMAGE" \
  flowmatch-rl fit "$@" --trainer.default_root_dir "/workspace/runs/$SLURM_JOB_ID" --ckpt_path last || status=$?

# 143: SIGTERM came, by a preemption or before the time limit, and the run has written its checkpoint.
if [[ $status -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
