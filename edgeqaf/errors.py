"""Every error a user can meet, typed, with the exit code the command line turns it into.

A message states the cause with its names and numbers; ``remedy`` states what to do about it.
The command line prints the two, one line each, and never a traceback.
"""


class EdgeqafError(Exception):
    """Base of all of them. ``exit_code`` is the process's status when it reaches the user."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy


class UsageError(EdgeqafError):
    """The request itself is wrong: an unknown name, an output that already exists."""

    exit_code = 2


class Refused(EdgeqafError):
    """The input is not what it must be: corrupt, of another base, of an unsupported kind."""

    exit_code = 3


class GridError(Refused):
    """A tensor does not lie on its grid, or a delta writes a slot the grid lacks."""


class VerificationFailed(EdgeqafError):
    """Something that must be equal, bit for bit, is not; or a run changed nothing."""

    exit_code = 4


class Diverged(VerificationFailed):
    """Training came to a loss or a gradient that is no finite number, and stopped before it took the step."""


class OutOfResources(EdgeqafError):
    """Disk or memory is too small for what was asked."""

    exit_code = 5


class RuntimeAbsent(EdgeqafError):
    """A runtime, an optional package or a golden that was required is not on this machine."""

    exit_code = 6


class Interrupted(EdgeqafError):
    """The user or the system stopped the work; finished parts are kept for ``--resume``."""

    exit_code = 7


class ShadowedPackage(EdgeqafError):
    """Another distribution owns a package name that edgeqaf's plugins live under."""

    exit_code = 6
