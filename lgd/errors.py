"""The project's own exceptions."""


class InputError(ValueError):
    """Something the user gave (a path, a key, a number, a file's content) is wrong; the message is one clear line."""
