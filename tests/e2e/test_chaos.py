"""The short version of `make chaos`: faults of some kinds while a fleet of jobs lives, and every job's story judged."""

import os
import random

from chaos import faults, fleet, rounds
from support.site import Site

OTHERS = 3
"""Kinds of faults beside those that can be done anywhere. Another choice in each run: CHAOS_SEED=N repeats a failure's."""


def test_a_fleet_of_jobs_lives_through_faults(site: Site) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    others = sorted(set(faults.FAULTS) - {*faults.ANYWHERE, faults.POOLS})
    names = (*faults.ANYWHERE, *random.Random(seed).sample(others, OTHERS if site.local else 0))
    wanted = rounds.Plan("short", seed, len(names), 4, fleet.SHORT, names)
    with rounds.ready(site, "", clocks=faults.CLOCK in names) as (world, jobs):
        result = rounds.run(world, jobs, wanted, lambda _: None)
    assert not result.violations, f"seed {seed} (CHAOS_SEED): {result.violations}"
    assert len(result.rounds) == len(names)
    assert len(result.lives) >= 4, "the fleet lived"
