"""What tests of the command line share."""

import pytest

from molrmog.interfaces import cli


@pytest.fixture(scope="module")
def parsers_built_once():
    """Build the parsers once: it takes a tenth of a second, and sweeps judge words by the thousand."""
    parser, made = cli.build_parser(), {name: (make(), help) for name, (make, help) in cli._COMMANDS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", lambda: parser)
        patch.setattr(cli, "_COMMANDS", {name: (lambda own=own: own, help) for name, (own, help) in made.items()})
        yield
