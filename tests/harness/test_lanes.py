"""Which tests of a whole run go together: the lists name files that exist, and what strikes the node comes last."""

from pathlib import Path

from support import lanes

REPOSITORY = Path(__file__).resolve().parents[2]
LISTED = (*lanes.BESIDE, *lanes.NODE, *lanes.CONTROL_PLANE, *lanes.SLOW)


def test_every_listed_name_is_a_file_or_a_folder() -> None:
    assert [name for name in LISTED if not (REPOSITORY / name).exists()] == []


def test_every_file_for_the_node_is_in_one_of_its_two_lanes() -> None:
    names = [f"tests/e2e/{path.name}::test" for path in (REPOSITORY / "tests" / "e2e").glob("test_*.py")]
    found = {lane: [name for name in names if lanes.of(name) == lane] for lane in ("node", "beside")}
    assert sorted([*found["node"], *found["beside"]]) == sorted(names)
    assert min(map(len, found.values())) >= 3


def test_faults_of_the_node_come_last_in_their_lane() -> None:
    names = [f"tests/e2e/{path.name}::test" for path in (REPOSITORY / "tests" / "e2e").glob("test_*.py")]
    lane = sorted((name for name in names if lanes.of(name) == "node"), key=lanes.turn)
    assert lane[-len(lanes.STRIKING) :] == [f"{name}::test" for name in lanes.STRIKING]


def test_a_file_of_its_own_is_a_lane_and_slow_files_begin_before_others() -> None:
    quick, slow = "tests/unit/api/test_job.py::test[tests/e2e/]", "tests/scenarios/test_training.py::test"
    assert (lanes.of(quick), lanes.of(slow)) == ("tests/unit/api/test_job.py", "tests/scenarios/test_training.py")
    assert lanes.turn(slow) < lanes.turn(quick)
