"""`.venv/bin/python hack/demo [down]`: see `tour` for the steps.

`down` needs only the standard library, so that it works when the environment is broken or missing.
"""

import argparse
import os
import sys
from pathlib import Path

# When a folder is run, Python puts the folder itself on the path; the packages of hack/ are one level above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from demo import child, teardown  # noqa: E402
from toolbox import say  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=["up", "down"], default="up")
    parser.add_argument(
        "--run",
        choices=["again"],
        default=os.environ.get("RUN") or None,
        help="train again although there is a finished job (make demo RUN=again)",
    )
    given = parser.parse_args()
    if given.verb == "down":
        teardown.down()
        return 0
    from demo import tour

    return tour.run(again=given.run == "again")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        child.end_all()
        say.line(f"\ndemo: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        child.end_all(patience=5)
        say.line(
            "\ndemo: interrupted. Finished steps stay, and a job that was applied continues in the cluster."
            "\n  resume:  make demo        stop everything:  make demo-down"
        )
        sys.exit(130)
