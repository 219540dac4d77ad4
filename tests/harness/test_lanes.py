"""Which tests of a whole run go together: the lists name files that exist, and what strikes the node comes last."""

from pathlib import Path

from support import lanes

REPOSITORY = Path(__file__).resolve().parents[2]
LISTED = (*lanes.NODE, *lanes.CONTROL_PLANE, *lanes.LONG, *lanes.BESIDE, *lanes.SLOW)


def test_every_listed_name_is_a_file_or_a_folder() -> None:
    assert [name for name in LISTED if not (REPOSITORY / name).exists()] == []


def test_every_file_for_the_node_is_in_one_of_its_two_lanes() -> None:
    names = [f"tests/e2e/{path.name}::test" for path in (REPOSITORY / "tests" / "e2e").glob("test_*.py")]
    found = {lane: [name for name in names if lanes.of(name) == lane] for lane in ("node", "beside")}
    assert sorted([*found["node"], *found["beside"]]) == sorted(names)
    assert min(map(len, found.values())) >= 3


def test_faults_of_the_node_come_first_in_their_lane_and_the_upgrade_last() -> None:
    names = [f"tests/e2e/{path.name}::test" for path in (REPOSITORY / "tests" / "e2e").glob("test_*.py")]
    lane = sorted((name for name in names if lanes.of(name) == "node"), key=lanes.turn)
    assert lane[: len(lanes.FIRST)] == [f"{name}::test" for name in lanes.FIRST]
    assert lane[-1] == f"{lanes.LAST[0]}::test"


def test_a_second_process_joins_on_the_node_after_the_longest_files() -> None:
    beside, longest = lanes.turn(f"{lanes.BESIDE[0]}::test"), lanes.turn(f"{lanes.LONG[-1]}::test")
    assert longest < beside < lanes.turn("tests/trainer/test_engine.py::test")


def test_a_file_of_its_own_is_a_lane_and_slow_files_begin_before_others() -> None:
    quick, slow = "tests/unit/api/test_job.py::test[tests/e2e/]", "tests/scenarios/test_training.py::test"
    assert (lanes.of(quick), lanes.of(slow)) == ("tests/unit/api/test_job.py", "tests/scenarios/test_training.py")
    assert lanes.turn(slow) < lanes.turn(quick)
