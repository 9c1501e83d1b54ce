"""The loss of one optimizer step: that of the objective, and whatever rides along with it.

A step's loss is a sum over its micro-batches of shares that are scaled from the start by numbers of the
WHOLE global batch, so the gradient of each share can be taken at once, and no split into micro-batches
changes that of the objective. Companions (routers, for one) may add terms, act after the update, and
report. What a term adds to the gradient it adds to the reported loss too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from erniekit.losses.multi_token import count_ahead
from erniekit.losses.token_balanced import token_balanced_loss
from erniekit.train.objectives import Objective

IGNORED = -100


@dataclass(frozen=True)
class Term:
    """A part of the loss. `value` is a micro-batch's share: summed over the step it is what is reported.

    `weight` times it enters the loss; 0 for what is only reported.
    """

    name: str
    value: Any
    weight: float


class Companion(Protocol):
    """What looks at every forward pass of a step and may add to its loss."""

    def begin_step(self, num_micro_batches: int) -> None: ...

    def before_forward(self, model: Any) -> None: ...

    def after_forward(self, model: Any, batch: Any) -> Iterable[Term]: ...

    def after_update(self) -> None:
        """The optimizer has changed the weights; not called for a step that is skipped."""

    def row(self) -> dict[str, Any]:
        """What the log is told about the step."""

    def lines(self) -> list[str]:
        """What the screen is told about the step."""


class StepLoss:
    """Call `begin` with the micro-batches of a step, then the object itself for each of them."""

    def __init__(
        self,
        objective: Objective,
        companions: Sequence[Companion] = (),
        num_depths: int = 0,
        *,
        token_balance_loss: bool = False,
        multi_token_pred_lambda: float = 0.0,
    ) -> None:
        """`num_depths` is the number of the model's blocks of multi-token prediction."""
        self.companions = tuple(companions)
        self.num_tokens = 0
        self._objective = objective
        self._balanced = token_balance_loss
        self._lambda = multi_token_pred_lambda
        self._num_depths = num_depths if multi_token_pred_lambda else 0
        self._num_masked = 0
        self._ahead_scales: list[float] = []
        self._shares: dict[str, list[Any]] = {}

    def begin(self, batches: Sequence[Any]) -> None:
        """Count what the shares are divided by."""
        self.num_tokens = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
        self._num_masked = sum(int(((batch.labels == IGNORED) & batch.is_token()).sum()) for batch in batches)
        counts = count_ahead([(batch.labels, batch.attend_from) for batch in batches], self._num_depths)
        self._ahead_scales = [self._lambda / (self._num_depths * max(count, 1)) for count in counts]
        self._shares = {}
        begin_step = getattr(self._objective, "begin_step", None)
        if begin_step is not None:
            begin_step(batches)
        for companion in self.companions:
            companion.begin_step(len(batches))

    def __call__(self, model: Any, batch: Any) -> Any:
        """A micro-batch's share of the loss, a scalar to call `backward` on."""
        for companion in self.companions:
            companion.before_forward(model)
        masked = self._num_masked if self._balanced else 0
        loss, metrics = self._objective(
            model,
            batch,
            scale=token_balanced_loss(1.0, self.num_tokens, masked),
            ahead_scales=self._ahead_scales,
        )
        if "shares" in metrics:
            for name, share in metrics["shares"].items():
                self._keep(name, share)
        else:
            self._keep("token_balanced_loss" if self._balanced else "lm_loss", loss)
        for ahead in metrics.get("ahead_losses", ()):
            # Scaled and weighted already: its gradient passes as it is.
            self._keep("mtp_loss", ahead / self._lambda)
            loss = loss + ahead
        for term in self._terms(model, batch):
            loss = loss + term
        self._keep("loss", loss)
        return loss

    def after_backward(self) -> None:
        """The gradients of the step are whole; companions may make others of them."""
        for companion in self.companions:
            after_backward = getattr(companion, "after_backward", None)
            if after_backward is not None:
                after_backward()

    def without_effect(self, model: Any, batch: Any) -> Any:
        """Zero, by the forward pass of a micro-batch that counts nothing, for processes that wait for it."""
        nothing = [0.0] * len(self._ahead_scales)
        waited_for: list[Any] = [
            each for each in self.companions if getattr(each, "average", None) is not None
        ]
        for companion in waited_for:
            companion.before_forward(model)
        loss, metrics = self._objective(model, batch, scale=0.0, ahead_scales=nothing)
        parts = [part for companion in waited_for for part in companion.without_effect(model, batch)]
        return sum([*metrics.get("ahead_losses", ()), *parts], loss) * 0.0

    def of_part(self, model: Any, batch: Any, forward: Callable[[], Any]) -> tuple[Any, Any | None]:
        """What `forward` gives, of a part of the model that ends before the objective, and its terms.

        The second is a scalar to call `backward` on, None without companions that add to the loss.
        """
        for companion in self.companions:
            companion.before_forward(model)
        output = forward()
        terms = self._terms(model, batch)
        if not terms:
            return output, None
        loss = sum(terms[1:], terms[0])
        self._keep("loss", loss)
        return output, loss

    def _terms(self, model: Any, batch: Any) -> list[Any]:
        """What companions add to the loss of a micro-batch, weighted."""
        terms = [term for companion in self.companions for term in companion.after_forward(model, batch)]
        for term in terms:
            self._keep(term.name, term.value)
        return [term.weight * term.value for term in terms if term.weight]

    def values(self, total: Callable[[dict[str, float]], dict[str, float]] | None = None) -> dict[str, float]:
        """The step's loss (`loss`: what is minimised) and, where it has several parts, their values.

        `lm_loss` is the mean over the trained tokens whatever is minimised. Terms stand without weights.
        `total` sums named numbers over the processes, where several have parts of the step's loss.
        """
        sums = {name: sum(float(share) for share in shares) for name, shares in self._shares.items()}
        sums = sums if total is None else total(sums)
        found = {"loss": sums.pop("loss")}
        if "token_balanced_loss" in sums:
            found["lm_loss"] = (
                sums["token_balanced_loss"] * (self.num_tokens + self._num_masked) / max(self.num_tokens, 1)
            )
        return found | sums if len(found) + len(sums) > 2 else found

    def _keep(self, name: str, value: Any) -> None:
        self._shares.setdefault(name, []).append(value if isinstance(value, float) else value.detach())
