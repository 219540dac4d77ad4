"""Mounts below a folder: finding and removing them."""

from pathlib import Path

from toolbox import shell


def below(folder: Path) -> list[Path]:
    """Mount points inside a folder (not the folder itself), the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Field 5 is where it is mounted, blanks written as octal escapes.
    places = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return sorted((place for place in places if place != folder and place.is_relative_to(folder)), reverse=True)


def remove(folder: Path) -> None:
    for place in below(folder):
        shell.run(["umount", "--lazy", place], check=False)
