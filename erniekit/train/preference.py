"""From a configuration to the objective of preference training: which reference, asked when."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from erniekit import assemble
from erniekit.config.config import Config
from erniekit.errors import UnsupportedError
from erniekit.log import logger
from erniekit.parallel.distribute import Distribution
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.train.dpo import PreferenceObjective, PreferenceSettings
from erniekit.train.reference import (
    CACHE_FILE,
    CachedReference,
    ModelReference,
    MovingReference,
    digest_of,
    score_once,
)
from erniekit.train.team import Team

# Losses that look at the sums of log-probabilities, to which normalize_logps makes a difference.
_SUMMED = ("sigmoid", "hinge", "dpop", "kto_pair", "sppo_hard", "nca_pair")


def preference_objective(
    config: Config,
    built: assemble.Assembled,
    folder: Path,
    needed: Callable[[], Iterable[Any]],
    pipeline: PipelineEngine | None = None,
    *,
    resumed: bool,
) -> PreferenceObjective:
    """The objective of stage DPO for a run.

    Args:
        built: the model that is trained.
        folder: of the model that the run began with, its reference.
        needed: the batches that the run will see.
        pipeline: runs the model where it lies in stages.
        resumed: `built` is not the model of `folder` any more.
    """
    settings, size = settings_of(config), config.model.loss_subbatch_seqlen
    reference: CachedReference | ModelReference | None = None
    adapted = built.adapter is not None
    how = how_asked(settings, adapted=adapted, in_stages=pipeline is not None)
    if settings.needs_reference and how == "precompute":
        if not resumed or adapted:
            off = _reference_of(built)
            build = lambda: ModelReference(built.model, off, pipeline, loss_subbatch_seqlen=size)  # noqa: E731
        else:
            build = lambda: _copy_of(config, folder, built.spread)  # noqa: E731
        cache = Path(config.run.output_dir) / CACHE_FILE
        team = Team(built.spread)
        digest = team.of_first(lambda: digest_of(folder, replace(built, qat=None).numbers_in_words()))
        reference = score_once(needed(), build, cache, digest, resumed=resumed, team=team)
    elif settings.needs_reference:
        if settings.ref_model_update_steps > 0:
            require_whole(config.parallel.sharding, built.spread)
            copy = _copy_of(config, folder, built.spread).model
            reference = MovingReference(
                copy, built.model, settings.ref_model_update_steps, loss_subbatch_seqlen=size
            )
        elif adapted:
            reference = ModelReference(None, _reference_of(built), loss_subbatch_seqlen=size)
        else:
            reference = _copy_of(config, folder, built.spread)
    objective = PreferenceObjective(settings, reference, loss_subbatch_seqlen=size)
    model = config.model
    dropout = model.hidden_dropout_prob or model.attention_probs_dropout_prob
    objective.expects_ln2 = settings.begins_at_ln2() and not resumed and not dropout and built.qat is None
    return objective


def moving_reference(objective: Any) -> MovingReference | None:
    """The reference of an objective, if it moves with the training."""
    reference = getattr(objective, "reference", None)
    return reference if isinstance(reference, MovingReference) else None


def held_out_objective(config: Config, folder: Path, batches: Iterable[Any]) -> PreferenceObjective:
    """The objective for an evaluation of its own, `folder` being the reference."""
    settings = settings_of(config)
    reference = None
    if settings.needs_reference:
        cache = Path(config.run.output_dir) / CACHE_FILE
        cache.parent.mkdir(parents=True, exist_ok=True)
        digest = digest_of(folder, assemble.numbers_in_words(config.model.compute_type))
        reference = score_once(batches, lambda: _copy_of(config, folder), cache, digest)
    return PreferenceObjective(settings, reference, loss_subbatch_seqlen=config.model.loss_subbatch_seqlen)


def settings_of(config: Config) -> PreferenceSettings:
    """The keys of preference training."""
    return PreferenceSettings(**asdict(config.preference))


def how_asked(settings: PreferenceSettings, *, adapted: bool, in_stages: bool = False) -> str:
    """`precompute` or `model`."""
    if settings.ref_logps != "auto":
        return settings.ref_logps
    if in_stages:  # which a model runs through once for a micro-batch
        return "precompute"
    return "model" if adapted or settings.ref_model_update_steps > 0 else "precompute"


def words_for_start_screen(settings: PreferenceSettings, *, adapted: bool, in_stages: bool = False) -> str:
    """Loss and reference, and where they are not those of the papers."""
    if settings.needs_reference:
        by = {
            "precompute": "scored once before training",
            "model": "the model without its adapter" if adapted else "a second copy of the model",
        }[how_asked(settings, adapted=adapted, in_stages=in_stages)]
        against = f"reference {by}"
    else:
        against = "no reference"
    words = f"{settings.loss_type}, beta {settings.beta:g}, {against}"
    if settings.normalize_logps and settings.loss in _SUMMED:
        words += "; answers scaled to the mean length of their pair (normalize_logps: false is standard DPO)"
    return words


def _reference_of(built: assemble.Assembled) -> Callable[[Any], AbstractContextManager[None]] | None:
    """What makes the trained model its own reference for a while: in full, and without its adapter."""
    if built.adapter is None and built.qat is None:
        return None

    @contextmanager
    def reference(model: Any) -> Iterator[None]:
        from erniekit.adapters.lora import adapters_off

        with built.qat.off() if built.qat is not None else nullcontext(), adapters_off(model):
            yield

    return reference


def require_whole(sharding: str, spread: Distribution | None) -> None:
    """Refuse to take over and save what would be a part of the reference."""
    if spread is None:
        return
    released = sharding == "stage3" and spread.mesh.sharding.size > 1
    if spread.split or spread.experts or released:
        raise UnsupportedError(
            "ref_model_update_steps is not built for a model that is split over processes "
            "(tensor_parallel_degree, expert_parallel_degree, sharding: stage3); leave it out, or these"
        )


def _copy_of(config: Config, folder: Path, spread: Distribution | None = None) -> ModelReference:
    """A second model in memory, over the processes as the first one is.

    Raises:
        UnsupportedError: the model lies in stages of a pipeline.
    """
    if spread is not None and spread.cut is not None:
        raise UnsupportedError(
            f"{CACHE_FILE} in output_dir has not every pair of this run, and the model that it began with "
            "cannot be asked beside the trained one over the stages of a pipeline; bring the file back, or "
            "begin anew with overwrite_output_dir: true"
        )
    logger.info(f"the reference model is read from {folder}")
    copy = assemble.load_for_inference(
        folder,
        mesh=None if spread is None else spread.mesh,
        sequence_parallel=config.parallel.sequence_parallel,
        compute_type=config.model.compute_type,
    )
    return ModelReference(copy.model, None, loss_subbatch_seqlen=config.model.loss_subbatch_seqlen)
