"""The one exception that a user is meant to read, and those that others' code raises."""


class OmpqError(Exception):
    """An error that a user can put right: one line that says what was wrong, where, what to do.

    A message names what the user set by its Python name in backticks, such as `num_images`; a
    script prints its own flag in the place of that name.
    """


# What a network's own code raises on values, or under tracing, that it was not made for.
UNSUITED_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
