"""What a user got wrong, as an exception of its own: every other exception is a fault of the program and keeps its trace."""


class UserError(ValueError):
    """A mistake of whoever calls: the message is one sentence that names the thing, its value and the remedy."""


class NumbersError(UserError, FloatingPointError):
    """Numbers that left the range of floating point for too long, such as a loss: settings of the user's led there."""
