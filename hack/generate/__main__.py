"""`python hack/generate [--check]`: writes the CRDs and docs/reference."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path; the packages of hack/ are one above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from generate import api, cli, crd  # noqa: E402
from toolbox import cache  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hack/generate", description="Write the CRDs and docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not current")
    options = parser.parse_args(arguments)
    return write(crd.files() | api.files() | cli.files(), check=options.check)


def write(texts: Mapping[Path, str], *, check: bool, root: Path = cache.REPOSITORY) -> int:
    """Writes what is not current, or with `check` names it; the exit code of the generator."""
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        name = path.relative_to(root)
        if check:
            print(f"{name} is not current: run `make crds` and commit it", file=sys.stderr)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
        print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
