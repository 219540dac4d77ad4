"""Images are named by their contents; what is old goes."""

from pathlib import Path

import pytest

from images import base, catalogue, publish, registry
from toolbox import say

IMAGE = catalogue.Image("x", "x", "Dockerfile", ("requirements/x.txt", "code"), target="x")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in {"Dockerfile": "FROM scratch", "requirements/x.txt": "a==1", "code/main.py": "1"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_the_same_contents_have_the_same_tag(repository: Path) -> None:
    before = catalogue.tag(IMAGE, "base", repository)
    (repository / "code" / "__pycache__").mkdir()
    (repository / "code" / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"compiled")
    (repository / "elsewhere").write_text("not part of the image")
    assert catalogue.tag(IMAGE, "base", repository) == before


@pytest.mark.parametrize("changed", ["Dockerfile", "requirements/x.txt", "code/main.py", "code/new.py"])
def test_another_input_is_another_tag(repository: Path, changed: str) -> None:
    before = catalogue.tag(IMAGE, "base", repository)
    (repository / changed).write_text("changed")
    assert catalogue.tag(IMAGE, "base", repository) != before


def test_another_base_is_another_tag(repository: Path) -> None:
    assert catalogue.tag(IMAGE, "one", repository) != catalogue.tag(IMAGE, "two", repository)


def test_a_missing_input_is_reported(repository: Path) -> None:
    (repository / "requirements" / "x.txt").unlink()
    with pytest.raises(say.Problem, match=r"x\.txt does not exist"):
        catalogue.tag(IMAGE, "base", repository)


@pytest.mark.parametrize("image", catalogue.ALL, ids=lambda image: image.key)
def test_every_image_of_the_project_has_its_inputs(image: catalogue.Image) -> None:
    assert len(catalogue.tag(image, "base")) == 16


@pytest.mark.parametrize("image", catalogue.ALL, ids=lambda image: image.key)
def test_everything_that_a_dockerfile_copies_counts_for_the_tag(image: catalogue.Image) -> None:
    text = (catalogue.cache.REPOSITORY / image.dockerfile).read_text()
    stage = text.split(f" AS {image.target}\n")[-1].split("\nFROM ")[0]
    for line in stage.splitlines():
        words = line.split()
        if words and words[0] == "COPY" and not words[1].startswith("--") and image is not catalogue.S3:
            assert set(words[1:-1]) <= set(image.inputs), line


def test_the_newest_three_tags_are_preserved() -> None:
    assert publish.newest([], "a") == (["a"], [])
    assert publish.newest(["b", "c", "d"], "a") == (["a", "b", "c"], ["d"])
    assert publish.newest(["b", "c", "a"], "a") == (["a", "b", "c"], [])


@pytest.mark.parametrize(
    ("host", "plain"), [("127.0.0.1:5000", True), ("localhost:5000", True), ("registry.example.com", False)]
)
def test_only_registries_on_loopback_are_spoken_to_in_plain_http(host: str, plain: bool) -> None:
    assert registry.local(host) is plain


def test_a_registry_that_is_not_there_is_reported_with_what_to_do() -> None:
    with pytest.raises(say.Problem, match=r"no registry answers at 127\.0\.0\.1:9"):
        publish.build([catalogue.OPERATOR], "127.0.0.1:9")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("deb http://mirror.example/debian bookworm main\n", "http://mirror.example/debian"),
        ("deb [signed-by=/key] http://mirror.example/debian/ bookworm main\n", "http://mirror.example/debian/"),
        ("Types: deb\nURIs: http://mirror.example/debian-security\n", ""),
        ("# deb http://mirror.example/debian bookworm main\n", ""),
        ("Types: deb\nURIs: https://mirror.example/debian\n", "https://mirror.example/debian"),
    ],
)
def test_the_mirror_is_the_one_that_the_machine_installs_from(text: str, found: str) -> None:
    assert base.mirror_in(text) == found
