"""Mistakes and failures that end in a message, not in a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something that the user can fix; the message says how."""


class UsageError(UserError):
    """A command was called wrongly; the message is one line."""


class ConfigError(UserError, ValueError):
    """One or more mistakes in the configuration; the message has one line for each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(UserError):
    """The data is not available or not usable; the message says what to do."""


class RankError(RuntimeError):
    """A rank of `cgxffcv.launch` failed: which (`rank`), and its traceback, are the message."""

    def __init__(self, message: str, rank: int):
        self.rank = rank
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RankError], tuple[str, int]]:
        return type(self), (str(self), self.rank)
