"""Errors that are the user's to mend: tools print them as one line and exit with status 2."""


def one_line(text: str) -> str:
    """Write out what would break a line or can't be printed: names in a damaged file hold that."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _UserError(ValueError):
    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class DataError(_UserError):
    """A file of the user's is missing, unreadable or contradicts itself.

    The message is one line that names the file (or record) and the remedy.
    """


class ConfigError(_UserError):
    """A config contradicts itself or the data it is used with.

    The message is one line that names the key and the remedy.
    """


class DivergenceError(ArithmeticError):
    """A training has lost its way: losses or boxes are infinite or not a number.

    The message is one line that names the iteration and the remedies.
    """


class PartError(ConfigError):
    """A registered part, often a plug-in's, isn't what its place asks for.

    The message is one line that names the part, what it gave and what is expected
    (docs/extend.md).
    """
