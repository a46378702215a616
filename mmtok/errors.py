"""The one exception that means "the user's input is wrong" (exit code 2 on the command line)."""


class InputError(ValueError):
    """Input that mmtok cannot use: the message says what was given and what is expected."""
