"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake of the user's. The message is one line that says what is wrong and names the remedy.

    The commands print it without a traceback and leave with exit code 2.
    """
