"""What people touch: the scikit-learn estimator, the command line, the report."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Version of the installed package."""
    try:
        return version("molrmog")
    except PackageNotFoundError:
        return "from a source tree"
