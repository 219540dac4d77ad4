"""`python3 hack/images build [IMAGE…] --registry HOST:PORT`: the project's images in a registry. See hack/README.md."""

import argparse
import json
import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path, where its modules would shadow the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from images import catalogue, publish  # noqa: E402
from toolbox import say  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 hack/images", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    build = verbs.add_parser("build", help="build what the registry lacks, push it, print where each image is")
    prepare = verbs.add_parser("prepare", help="build what was never built, and push nothing")
    names = [image.key for image in catalogue.PUBLISHED]
    for verb in (build, prepare):
        verb.add_argument("image", nargs="*", help=f"{', '.join(names)} or all (default: all)")
    build.add_argument("--registry", required=True, metavar="HOST:PORT")
    build.add_argument("--tag", default="", help="a tag of your own instead of the hash of the contents")
    build.add_argument("--json", action="store_true", help="print one JSON object: image -> reference")
    given = parser.parse_args()
    wanted = names if not given.image or "all" in given.image else given.image
    if unknown := sorted(set(wanted) - set(names)):
        raise say.Problem(f"there is no image {', '.join(unknown)}; there are: {', '.join(names)}")
    images = [catalogue.BY_KEY[name] for name in wanted]
    if given.verb == "prepare":
        publish.prepare(images)
        return 0
    references = publish.build(images, given.registry, given.tag)
    if given.json:
        say.result(json.dumps(references))
    else:
        for name, reference in references.items():
            say.result(f"{name:<10} {reference}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"images: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("images: interrupted")
        sys.exit(130)
