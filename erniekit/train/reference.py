"""Log-probabilities of the reference model of preference training, without a second model where possible.

`CachedReference`: every answer is scored once before training, in the very batches that the run will see
first, so a model that is its own reference has the first loss ln 2 to the last bit. The numbers stay in
the run's folder, under the tokens of each pair and a digest of the weights: a resumed run finds them, and
so does another run in the folder. Tokenizer, template, truncation and masks are all in the tokens.

`ModelReference`: a model scores them in every step, the trained one without its adapter, or a copy.
`MovingReference`: a copy that becomes the present model every so many updates (`ref_model_update_steps`).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.atomic import write_file_atomic
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.checkpoint.raw import to_raw, to_tensor
from erniekit.errors import CheckpointError
from erniekit.log import logger
from erniekit.losses.preference import Answers
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.train.dpo import answer_log_probabilities
from erniekit.train.team import ALONE, Team

CACHE_FILE = "reference_logps.json"
_BASENAME = "reference"
_SECONDS_BETWEEN_WRITES = 60.0


class CachedReference:
    """Numbers that are known for every pair."""

    def __init__(self, table: dict[str, tuple[float, float]]) -> None:
        self._table = table

    def of(self, model: Any, batch: Any) -> Answers:
        """From the table; `model` is not asked."""
        rows = [self._table[place.key] for place in batch.pairs]
        both = paddle.to_tensor(rows, "float32")
        return Answers(both[:, 0], both[:, 1])


class ModelReference:
    """Runs a model in every step, without gradients and dropout."""

    def __init__(
        self,
        model: Any | None,
        without_adapter: Callable[[Any], AbstractContextManager[None]] | None,
        pipeline: PipelineEngine | None = None,
        *,
        loss_subbatch_seqlen: int,
    ) -> None:
        """Args:
        model: what is asked; None for the trained model, each time.
        without_adapter: turns its adapter off for a while.
        pipeline: runs the model where it lies in stages.
        """
        self.model, self._without_adapter, self._pipeline = model, without_adapter, pipeline
        self._loss_subbatch_seqlen = loss_subbatch_seqlen

    def of(self, model: Any, batch: Any) -> Answers:
        """Of this reference's own model, or of `model`."""
        asked = model if self.model is None else self.model
        with paddle.no_grad(), _at_rest(asked):
            if self._without_adapter is None:
                return self._score(asked, batch)
            with self._without_adapter(asked):
                return self._score(asked, batch)

    def _score(self, model: Any, batch: Any) -> Answers:
        score = partial(answer_log_probabilities, loss_subbatch_seqlen=self._loss_subbatch_seqlen)
        if self._pipeline is None:
            return score(model, batch)

        def rows(view: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
            found = score(view, batch)
            return found.chosen_P.numpy(), found.rejected_P.numpy()

        return Answers(*map(paddle.to_tensor, self._pipeline.forward([batch], rows)[0]))


class MovingReference(ModelReference):
    """A copy that takes over the trained weights after every `steps` updates; a companion of the step's loss.

    Checkpoints hold its weights and how many updates there were, so a resumed run goes on with both.
    """

    def __init__(self, copy: Any, trained: Any, steps: int, *, loss_subbatch_seqlen: int) -> None:
        super().__init__(copy, None, loss_subbatch_seqlen=loss_subbatch_seqlen)
        self._copy, self._trained, self._steps, self._updates = copy, trained, steps, 0

    def begin_step(self, num_micro_batches: int) -> None:
        """Nothing to do."""

    def before_forward(self, model: Any) -> None:
        """Nothing to do."""

    def after_forward(self, model: Any, batch: Any) -> tuple[()]:
        """Adds nothing to the loss."""
        return ()

    def after_update(self) -> None:
        """Count the update, and take over the weights when it is time."""
        self._updates += 1
        if self._updates % self._steps == 0:
            parameters = dict(self._trained.named_parameters())
            for name, parameter in self._copy.named_parameters():
                parameter.set_value(parameters[name])

    def row(self) -> dict[str, Any]:
        """How old the reference is, in updates."""
        return {"reference_age": self._updates % self._steps}

    def lines(self) -> list[str]:
        """Nothing for the screen."""
        return []

    def save(self, folder: Path) -> None:
        """Write `reference.safetensors`."""
        items = [(name, *to_raw(parameter)) for name, parameter in self._copy.named_parameters()]
        items.append(("num_updates", "I64", np.array([self._updates], dtype=np.int64)))
        write_tensors(folder, items, max_shard_bytes=1 << 62, metadata={}, basename=_BASENAME)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: there is nothing, or it cannot be read.
        """
        tensors = open_tensors(folder, _BASENAME)
        self._updates = int(tensors.read("num_updates")[0])
        for name, parameter in self._copy.named_parameters():
            dtype = tensors.info(name).dtype
            parameter.set_value(to_tensor(tensors.read(name), dtype).astype(parameter.dtype))


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """In evaluation mode, with nobody looking at its routers."""
    training, records = model.training, getattr(model, "router_records", None)
    model.eval()
    if records is not None:
        model.router_records = None
    try:
        yield
    finally:
        if records is not None:
            model.router_records = records
        if training:
            model.train()


def score_once(
    batches: Iterable[Any],
    build: Callable[[], ModelReference],
    cache: Path,
    digest: str,
    *,
    resumed: bool = False,
    team: Team = ALONE,
) -> CachedReference:
    """The reference's numbers for every pair of `batches`, from the cache or by running the model.

    Args:
        batches: what the run will train and evaluate on, in its order.
        build: makes the reference; called only when a pair is missing in the cache.
        cache: the file that keeps them.
        digest: of the reference, see `digest_of`; numbers of another model are not used.
        resumed: the run has trained against these numbers, so they must be of this reference.
        team: the processes that share the batches; the first one has the file.

    Raises:
        CheckpointError: the run is resumed, and the model that it began with is another one now.
    """
    table = team.of_first(lambda: _read(cache, digest, resumed=resumed))
    scorer: ModelReference | None = None
    found: dict[str, tuple[float, float]] = {}
    written = began = time.monotonic()
    for turn in team.turns(_unknown(batches, table)):
        scorer = scorer or build()
        batch, missing = turn.batch
        answers = scorer.of(None, batch)
        if not turn.counts:
            continue
        chosen, rejected = answers.chosen_P.numpy(), answers.rejected_P.numpy()
        for number in missing:
            found[batch.pairs[number].key] = (float(chosen[number]), float(rejected[number]))
        if team.is_first and time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            _write(cache, digest, table | found)
            written = time.monotonic()
            logger.info(f"reference: {len(found)} pairs scored{' by this process' if team.spread else ''}")
    if scorer is None:
        logger.info(f"reference: {len(table)} pairs from {cache}")
        return CachedReference(table)
    found = team.union(found)
    table |= found
    if team.is_first:
        _write(cache, digest, table)
    seconds = time.monotonic() - began
    logger.info(f"reference: {len(found)} pairs scored once in {seconds:.1f} s, kept in {cache}")
    return CachedReference(table)


def _unknown(
    batches: Iterable[Any], table: Mapping[str, tuple[float, float]]
) -> Iterator[tuple[Any, list[int]]]:
    """Batches with pairs that were in none before them, and the places of these."""
    seen = set(table)
    for batch in batches:
        missing = [number for number, place in enumerate(batch.pairs) if place.key not in seen]
        seen.update(place.key for place in batch.pairs)
        if missing:
            yield batch, missing


def digest_of(folder: Path, numbers: str) -> str:
    """A digest of a model folder's configuration and weights, and of the number types they are used in."""
    digest = hashlib.blake2b(numbers.encode(), digest_size=16)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        if path.name.startswith(("optimizer", _BASENAME)) or not path.is_file():
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def _read(cache: Path, digest: str, *, resumed: bool) -> dict[str, tuple[float, float]]:
    """The numbers of a cache file; none when it is of another model, broken, or changed by somebody."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        rows = {str(key): (float(one), float(two)) for key, (one, two) in content["pairs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{cache} cannot be used ({error}); the reference is asked again")
        return {}
    if content.get("digest") != _digest_of_rows(content["pairs"]):
        logger.warning(f"{cache} was changed after it was written; the reference is asked again")
        return {}
    if content.get("reference") != digest:
        if resumed:
            raise CheckpointError(
                f"{cache} is of another model than the one that the run would go on with as its reference: "
                "the model that it began with was changed or moved; bring it back, or remove the file to "
                "go on with another reference"
            )
        logger.warning(f"{cache} is of another reference model; the reference is asked again")
        return {}
    return rows


def _write(cache: Path, digest: str, table: dict[str, tuple[float, float]]) -> None:
    content = {"reference": digest, "digest": _digest_of_rows(table), "pairs": table}
    write_file_atomic(cache, (json.dumps(content) + "\n").encode())


def _digest_of_rows(rows: dict[str, Any]) -> str:
    text = json.dumps(rows, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
