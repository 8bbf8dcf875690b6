"""What is done when a batch does not fit into memory: smaller ones are formed for a while. (The batch itself
is computed in parts: app.engine.parts.)"""

from dataclasses import dataclass

from app.engine.scheduler import Limits

_RAISE_AFTER = 100  # batches that fitted
_RAISE_BY = 1.25


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left.

    Known by name, since this module has no torch: torch.OutOfMemoryError of the devices, and the RuntimeError
    of PyTorch's CPU allocator (c10/core/impl/alloc_cpu.cpp).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@dataclass(slots=True)
class Budget:
    """How many tokens a batch may have. Pure. Lowered when one did not fit; raised again, slowly, since what
    took the memory may have gone."""

    limits: Limits
    _tokens: int = 0
    _fitted: int = 0

    def __post_init__(self) -> None:
        self._tokens = self.limits.batch_tokens

    @property
    def tokens(self) -> int:
        """The budget now, from 1 to what is configured."""
        return self._tokens

    def fitted(self) -> None:
        """A batch was computed at once."""
        self._fitted += 1
        if self._fitted >= _RAISE_AFTER and self._tokens < self.limits.batch_tokens:
            self._tokens = min(self.limits.batch_tokens, int(self._tokens * _RAISE_BY) + 1)
            self._fitted = 0

    def did_not_fit(self, tokens: int, share: float) -> None:
        """A batch of so many tokens had to be split; ``share`` of its images fitted at once."""
        self._tokens = max(1, min(self._tokens, int(tokens * share)))
        self._fitted = 0
