"""Checks the system's limits for the server's processes before they are started."""

import resource

_MOST_FILES = 2**20
_FEWEST_FILES = 256  # for an HTTP process with some connections; a worker needs about as many
_LEAST_MEMORY = 4 * 2**30  # reserved by torch's libraries, a model and the stacks of its threads


class TooLow(Exception):
    """A limit that is too low for a server. The text names it and says how to raise it."""


def raise_limits() -> None:
    """Raise the limit of open files of this process and its children to the allowed maximum: each connection
    is one.

    Raises TooLow if that is not enough, or if they cannot reserve enough memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if most < _FEWEST_FILES:
        raise TooLow(
            f"the limit of open files is {most}, but a server needs {_FEWEST_FILES} and one for each "
            "connection; raise it, for example with ulimit -n 4096"
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if memory != resource.RLIM_INFINITY and memory < _LEAST_MEMORY:
        raise TooLow(
            f"the limit of address space is {memory // 2**20} MiB, but the processes of a server reserve "
            "up to "
            f"{_LEAST_MEMORY // 2**20} MiB each; lift it with ulimit -v unlimited, and limit memory by a "
            "container or cgroup instead"
        )
