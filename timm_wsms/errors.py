"""The one exception for what a user can fix."""

from typing import Any, get_args


class UserError(ValueError):
    """A user's mistake. The message is one line that says what is wrong and names the remedy.

    The commands print it without a traceback and exit with code 2.
    """


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise a UserError if an argument's value is not one of a `Literal` type's."""
    if value not in get_args(choices):
        raise UserError(f"{name} must be one of {', '.join(get_args(choices))}; not {value!r}")
