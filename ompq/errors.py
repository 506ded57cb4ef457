"""The one exception that a user is meant to read."""


class OmpqError(Exception):
    """What a user can put right: one line that says what was wrong, where, and what to do."""
