"""The images there are: what each is built from, and the tag that follows from that.

A tag is the hash of everything that goes into the image, so a registry that has the tag has the image: nothing is built
or pushed again, and nothing that changed is missed.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from toolbox import cache, say


@dataclass(frozen=True)
class Image:
    """`inputs` are files and folders of the repository; `parent` is another image's key that FROM names by argument."""

    key: str
    repository: str
    dockerfile: str
    inputs: tuple[str, ...]
    target: str = ""
    parent: str = ""
    parent_argument: str = ""
    usually: str = ""
    published: bool = True


_UV = ("requirements/install.sh", "requirements/uv.txt")
_TRAINER_CODE = ("operator/finetune_api", "trainer-image/finetune_trainer")
OPERATOR = Image(
    "operator",
    "finetune-operator",
    "Dockerfile",
    (*_UV, "requirements/operator.txt", "operator/finetune_api", "operator/finetune_operator"),
    target="operator",
    usually="20 s at first",
)
FETCH = Image(
    "fetch",
    "finetune-fetch",
    "trainer-image/Dockerfile",
    (*_UV, "requirements/fetch.txt", *_TRAINER_CODE),
    target="fetch",
    usually="20 s at first",
)
TORCH = Image(
    "torch",
    "finetune-torch",
    "trainer-image/Dockerfile",
    (*_UV, "requirements/torch.txt"),
    target="torch",
    usually="2 min at first",
    published=False,
)
TRAINER = Image(
    "trainer",
    "finetune-trainer",
    "trainer-image/Dockerfile",
    (*TORCH.inputs, "requirements/trainer.txt", *_TRAINER_CODE),
    target="trainer",
    usually="3 min at first",
)
VLLM_CPU = Image(
    "vllm-cpu",
    "vllm-cpu",
    "hack/images/vllm-cpu/Dockerfile",
    (*TORCH.inputs, "trainer-image/Dockerfile", "hack/images/vllm-cpu/requirements.txt"),
    target="vllm-cpu",
    parent="torch",
    parent_argument="TORCH_IMAGE",
    usually="1 min at first",
)
S3 = Image("s3", "versitygw", "hack/images/s3/Dockerfile", ("hack/tools/go.sum",), usually="2 s")
ALL = (OPERATOR, FETCH, TORCH, TRAINER, VLLM_CPU, S3)
BY_KEY = {image.key: image for image in ALL}
PUBLISHED = tuple(image for image in ALL if image.published)


def tag(image: Image, base: str, repository: Path = cache.REPOSITORY) -> str:
    """The tag that follows from an image's contents; `base` is the identity of the base image."""
    digest = hashlib.sha256(f"{base}\n{image.target}\n".encode())
    for path in sorted(files(repository, (image.dockerfile, *image.inputs))):
        content = (repository / path).read_bytes()
        digest.update(f"{path} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def files(repository: Path, inputs: Iterable[str]) -> set[str]:
    """The files below these inputs that reach an image: no bytecode, no caches."""
    found: set[str] = set()
    for name in inputs:
        path = repository / name
        if not path.exists():
            raise say.Problem(f"{path} does not exist: the images are built from a complete checkout")
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
                found.add(str(file.relative_to(repository)))
    return found
