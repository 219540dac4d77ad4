"""The short version of `make chaos`: one fault of each kind while a fleet of jobs lives, and every job's story judged."""

import os
import random

from chaos import faults, fleet, rounds
from support.site import Site


def test_a_fleet_of_jobs_lives_through_a_fault_of_each_kind(site: Site) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    names = tuple(faults.FAULTS) if site.local else faults.ANYWHERE
    wanted = rounds.Plan("short", seed, len(names), 4, fleet.SHORT, names)
    with rounds.ready(site, "") as (world, jobs):
        result = rounds.run(world, jobs, wanted, lambda _: None)
    assert not result.violations, f"seed {seed} (CHAOS_SEED): {result.violations}"
    assert len(result.rounds) == len(names)
    assert len(result.lives) >= 4, "the fleet lived"
