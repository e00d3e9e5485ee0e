"""The command ``export``."""

from collections.abc import Sequence

from flowmatch_rl.cli.parser import ALLOW_IMPORTS, make_parser, read_options
from flowmatch_rl.inference import export_checkpoint


def export(args: Sequence[str]) -> int:
    """Write the model of a checkpoint as a program that runs without this package.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = make_parser(
        "export",
        "Write a policy, a flow or an occupancy as a program that runs without this package, noise being an input.",
        with_files=False,
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of the model.")
    parser.add_argument("--output", type=str, required=True, help="File to write, .onnx or .pt2.")
    parser.add_argument(
        "--batch_size", type=int | None, default=None, help="Rows that each call takes; any number if null."
    )
    parser.add_argument(
        "--num_particles",
        type=int | None,
        default=None,
        help="Particles that a policy acts by the best of, those of its evaluations if null; or future states that an "
        "occupancy draws for each state, 1 if null.",
    )
    parser.add_argument(
        "--num_steps", type=int | None, default=None, help="Steps of the sampler; the model's own if null."
    )
    parser.add_argument(
        "--samples", type=bool, default=False, help="Whether a policy acts by one particle, a plain sample of it."
    )
    parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)
    options = read_options(parser, args)
    print(export_checkpoint(options.pop("ckpt_path"), allow=options.pop("allow_imports"), **options))
    return 0
