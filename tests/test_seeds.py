"""Seeds of processes and steps differ, and begin with the common one."""

from itertools import product

from flowmatch_rl.seeds import process_seed


def test_the_first_process_begins_with_the_common_seed() -> None:
    assert process_seed(7) == 7


def test_ranks_and_steps_have_seeds_of_their_own() -> None:
    seeds = [process_seed(7, rank, step) for rank, step in product(range(64), range(100))]
    assert len(set(seeds)) == len(seeds)


def test_seeds_stay_in_the_range_that_generators_take() -> None:
    assert 0 <= process_seed(2**63 - 1, 3, 10**9) < 2**63
