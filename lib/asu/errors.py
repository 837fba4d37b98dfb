"""The one error a user is meant to read: what is wrong, and what to do about it."""


class AsuError(Exception):
    """A problem with its remedy, both complete sentences a user can act on."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}\n  Remedy: {remedy}")
        self.problem = problem
        self.remedy = remedy
