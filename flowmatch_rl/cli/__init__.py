from flowmatch_rl.cli.command import FlowMatchCLI, run

__all__ = ["FlowMatchCLI", "run"]
