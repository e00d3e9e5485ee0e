"""Run benchmarks and write ``benchmarks/RESULTS.md`` and ``benchmarks/results.json``.

python -m benchmarks                 all of them, more than a day, most of it online; offline takes four hours
python -m benchmarks update_speed    one of them; the others' last results are kept
"""

import argparse
import importlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.callbacks.run_record import commit
from flowmatch_rl.devices import processor_instructions

FOLDER = Path(__file__).parent
BENCHMARKS = (
    "update_speed",
    "update_peer",
    "training_speed",
    "trainer_overhead",
    "collecting_ahead",
    "policy_cost",
    "policy_latency",
    "critic_cost",
    "exact_resume",
    "checkpoint_kills",
    "soak",
    "replay_checkpoint",
    "bandits",
    "estimator_dimensions",
    "online",
    "two_ways",
    "online_peer",
    "pendulum",
    "flow_speed",
    "flow_quality",
    "flow_few_steps",
    "couplings",
    "likelihood",
    "bias_chain",
    "bias_lock",
    "occupancy_linear_gaussian",
    "occupancy_stochastic",
    "occupancy_maze",
    "occupancy_horizon",
    "occupancy_bodies",
    "occupancy_bias",
    "occupancy_bootstraps",
    "occupancy_chained",
    "occupancy_intentions",
    "expansion_cost",
    "occupancy_planning",
    "forward_backward",
    "any_reward",
    "any_reward_peers",
    "any_reward_body",
    "occupancy_speed",
    "offline_tilt",
    "offline",
    "offline_peer",
    "offline_online",
    "offline_speed",
    "tracking_outage",
    "pictures",
)
ON_REQUEST = ("update_peer", "offline_peer")
"""Those that need code of others, see their descriptions: run when they are named."""


def processor() -> str:
    """Name of the processor with its instructions, and of the GPU if there is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    name = f"{name} ({processor_instructions()})"
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def table(result: dict[str, Any]) -> str:
    """A result as a Markdown section."""
    rows = result["rows"]
    head = list(rows[0])
    shown = [[f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in head] for row in rows]
    extra = [f"{key}: {value:.4g}" for key, value in result.items() if isinstance(value, float | int)]
    lines = [f"## {result['title']}", "", f"    python -m benchmarks {result['name']}", ""]
    lines += [f"{result['machine']}; torch {result['torch']}; commit {result['commit'][:10]}; {result['date']}."]
    lines += [", ".join(extra) + "."] if extra else []
    lines += ["", "| " + " | ".join(key.replace("_", " ") for key in head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in shown]) + "\n"


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; if none, all but {', '.join(ON_REQUEST)}"
    )
    names = parser.parse_args().names or [name for name in BENCHMARKS if name not in ON_REQUEST]
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    store = FOLDER / "results.json"
    results: dict[str, Any] = {}
    for name in names:
        result = {"name": name, **importlib.import_module(f"benchmarks.{name}").run()}
        results = json.loads(store.read_text()) if store.exists() else {}
        result |= {"machine": processor(), "torch": torch.__version__, "commit": commit()}
        results[name] = result | {"date": time.strftime("%Y-%m-%d")}
        store.write_text(json.dumps(results, indent=2) + "\n")
        print(table(results[name]), flush=True)
    intro = "# Results\n\nRatios within a run are what counts; absolute figures drift with the machine. "
    intro += "Figures are in float32 where no other precision is named.\n\n"
    sections = [table(results[name]) for name in BENCHMARKS if name in results]
    (FOLDER / "RESULTS.md").write_text(intro + "\n".join(sections))


if __name__ == "__main__":
    main()
