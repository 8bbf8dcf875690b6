"""Forms smaller batches for a while after a batch did not fit into a worker's memory. (The worker computes
that batch itself in parts: app.worker.parts.)"""

from dataclasses import dataclass

from app.messages.capacity import Limits

_RAISE_AFTER = 100  # batches that fitted into memory
_RAISE_BY = 1.25


@dataclass(slots=True)
class Budget:
    """The maximum number of tokens of a batch. Pure. It is lowered when a batch did not fit, and raised again
    slowly, because whatever took the memory may have gone."""

    limits: Limits
    _tokens: int = 0
    _fitted: int = 0

    def __post_init__(self) -> None:
        self._tokens = self.limits.batch_tokens

    @property
    def tokens(self) -> int:
        """The budget now, from 1 to the configured maximum."""
        return self._tokens

    def fitted(self) -> None:
        """Note a batch that fitted into memory."""
        self._fitted += 1
        if self._fitted >= _RAISE_AFTER and self._tokens < self.limits.batch_tokens:
            self._tokens = min(self.limits.batch_tokens, int(self._tokens * _RAISE_BY) + 1)
            self._fitted = 0

    def did_not_fit(self, tokens: int, share: float) -> None:
        """Note a batch with this many tokens that had to be split. ``share`` of its images fitted at once."""
        self._tokens = max(1, min(self._tokens, int(tokens * share)))
        self._fitted = 0
