"""Where a job's files are in S3, below `<output>/<namespace>/<name>/<revision>/`.

A folder is complete when it holds `manifest.json`, which is written last and lists every other file with size and
sha256.
"""

import dataclasses

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The URIs of one revision. `output` is `spec.storage.output`."""

    output: str
    namespace: str
    name: str
    revision: str

    @property
    def root(self) -> str:
        return f"{self.output.rstrip('/')}/{self.namespace}/{self.name}/{self.revision}"

    @property
    def preflight(self) -> str:
        return f"{self.root}/preflight.json"

    @property
    def data(self) -> str:
        """Folder of the frozen split that preflight wrote: train, validation and test, one JSON line per example, and
        corpus/train and corpus/validation with their token ids."""
        return f"{self.root}/data"

    @property
    def taught(self) -> str:
        """Folder of the same files as `data` with the answers of training.teacher."""
        return f"{self.root}/taught"

    @property
    def answers(self) -> str:
        """Folder of what another model answered as the teacher of any revision of the job."""
        return f"{self.output.rstrip('/')}/{self.namespace}/{self.name}/answers"

    @property
    def replay(self) -> str:
        """Folder of the general examples of training.replay, as token ids."""
        return f"{self.root}/replay"

    def baseline(self, evaluation_hash: str) -> str:
        """Folder of results.json and samples.jsonl of the baseline before training."""
        return f"{self.root}/baseline/{evaluation_hash}"

    def tries(self, test_set: str) -> str:
        """The evaluations of all revisions of the job on the test examples with this hash."""
        return f"{self.output.rstrip('/')}/{self.namespace}/{self.name}/tries/{test_set}.json"

    @property
    def checkpoints(self) -> str:
        """Folder of checkpoints, one folder per step."""
        return f"{self.root}/checkpoints"

    def checkpoint(self, step: int) -> str:
        return f"{self.checkpoints}/{step:08d}"

    @property
    def adapter(self) -> str:
        return f"{self.root}/adapter"

    def evaluation(self, evaluation_hash: str) -> str:
        """Folder of results.json, samples.jsonl and canary.json of one evaluation of this revision's adapter."""
        return f"{self.root}/evaluation/{evaluation_hash}"

    @property
    def report(self) -> str:
        return f"{self.root}/report.html"
