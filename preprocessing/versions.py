"""What is installed, for the records beside results."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str:
    """The version of an installed distribution, 'absent' where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
