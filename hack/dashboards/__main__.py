"""`python hack/dashboards [--check]`: writes the chart's Grafana dashboards."""

import argparse
import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path; the packages of hack/ are one above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dashboards import catalogue  # noqa: E402
from toolbox import cache  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/dashboards", description="Write the chart's Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not current")
    options = parser.parse_args()
    stale = catalogue.stale()
    for name in stale:
        path = catalogue.FOLDER / name
        shown = path.relative_to(cache.REPOSITORY)
        if options.check:
            print(f"{shown} is not current: run `make dashboards` and commit it", file=sys.stderr)
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(catalogue.files()[name])
        print(f"wrote {shown}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
