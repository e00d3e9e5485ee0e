"""Checksums of a data set, in a file that ``sha256sum -c`` reads as well."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from flowmatch_rl.checks import UserError
from flowmatch_rl.files import write_text

CHECKSUMS_FILE = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a data set into its folder.

    Args:
        folder: Folder of the data set.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_checksum(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_text(folder / CHECKSUMS_FILE, "".join(lines))


def check_checksums(folder: Path, needed: Iterable[str]) -> None:
    """Compare the files of a data set with their checksums; one without checksums passes, and so do other files.

    Args:
        folder: Folder of the data set.
        needed: Files that must have a checksum, relative to the folder.

    Raises:
        UserError: If a file is not what was written.
    """
    if not (folder / CHECKSUMS_FILE).is_file():
        return
    lines = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    written = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
    for name in sorted({*written, *needed}):
        file = folder / name
        if not file.is_file() or written.get(name) != _checksum(file):
            raise UserError(
                f"the data set {str(folder)!r} is damaged: {name} is not what was written, by its checksum in "
                f"{CHECKSUMS_FILE}; copy or make the data set again"
            )


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
