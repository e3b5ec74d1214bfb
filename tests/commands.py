"""Our commands, called in this process."""

import click
from click.testing import CliRunner, Result


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def refused(command: click.Command, *arguments: object) -> str:
    """The one line on stderr of a call that must end with code 2."""
    result = call(command, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    return result.stderr
