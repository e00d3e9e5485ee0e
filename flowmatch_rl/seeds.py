"""Seeds of the processes and steps of a run, from the one seed that they share."""


def process_seed(common: int, rank: int = 0, step: int = 0) -> int:
    """Seed of the noise of one process.

    Weights are built from the common seed on every process, while noise, environments and the order of the data need a
    seed of their own on each.

    Args:
        common: Seed that all processes share, or one that this function returned for the process.
        rank: Global rank of the process.
        step: Step at which a run resumed, or number of a pass over the data.

    Returns:
        Seed, different for different ranks and steps; the common seed for rank 0 and step 0.
    """
    return (common + 1_000 * rank + 1_000_000 * step) % 2**63
