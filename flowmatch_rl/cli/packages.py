"""Installed packages beside what this one requires; nothing here imports any of them."""

import platform
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from flowmatch_rl.checks import first_names

_PACKAGE = "flowmatch_rl"
_SHOWN = ("torch", "lightning", "torchrl", "tensordict", "mlflow", "gymnasium", "mujoco", "dm_control")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        label: What it is.
        text: How it is, one line.
        fix: What to do about it, one line; empty if nothing is to be done.
        is_broken: Whether runs fail by it; else the fix is advice.
    """

    label: str
    text: str
    fix: str = ""
    is_broken: bool = False

    def __str__(self) -> str:
        """The finding, with its fix below."""
        lines = [f"{self.label:<12} {self.text}"]
        if self.fix:
            lines.append(f"{'  broken:' if self.is_broken else '  advice:':<12} {self.fix}")
        return "\n".join(lines)


def versions() -> Finding:
    """Versions, and the packages that do not fit."""
    wrong = [problem for requirement in _required() if (problem := _unmet(requirement))]
    known = [f"{name} {version}" for name in (_PACKAGE, *_SHOWN) if (version := _version(name))]
    text = f"Python {platform.python_version()}, {', '.join(known)}"
    if not wrong:
        return Finding("versions", text)
    fix = "pip install " + " ".join(f"'{wanted}'" for wanted, _ in wrong)
    return Finding("versions", f"{text}; {first_names([found for _, found in wrong])}", fix, is_broken=True)


def is_complete() -> bool:
    """Whether every package that this one requires is installed, in any version."""
    return not any(_version(requirement.name) is None and not _is_extra(requirement) for requirement in _required())


def _required() -> list[Requirement]:
    """What the installed package requires; nothing is known of one that runs from its folder, uninstalled."""
    try:
        return [Requirement(line) for line in metadata.requires(_PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []


def _is_extra(requirement: Requirement) -> bool:
    return requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})


def _unmet(requirement: Requirement) -> tuple[str, str] | None:
    """What to install and what is there, where a package does not fit; None if it does, or is an extra's and absent."""
    version = _version(requirement.name)
    if version is None:
        return None if _is_extra(requirement) else (_wanted(requirement), f"{requirement.name} is missing")
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return _wanted(requirement), f"{requirement.name} {version} does not fit {requirement.specifier}"


def _wanted(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
