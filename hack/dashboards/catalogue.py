"""Which dashboards there are, and the files that they become."""

import json

from dashboards import fleet, grafana, job, pools, serving
from toolbox import cache

FOLDER = cache.REPOSITORY / "charts" / "finetune-operator" / "dashboards"
BOARDS = {"fleet": fleet.BOARD, "job": job.BOARD, "pools": pools.BOARD, "serving": serving.BOARD}


def files() -> dict[str, str]:
    """Name -> contents of every file."""
    return {f"{name}.json": json.dumps(grafana.render(board), indent=1) + "\n" for name, board in BOARDS.items()}


def stale() -> list[str]:
    """Names of the files that are not as they should be."""
    return [
        name for name, text in files().items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]
