"""Rules between keys; each names the keys it is about and says what to write instead."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from erniekit.config.config import Config
from erniekit.config.model import QUANTISED
from erniekit.config.quantize_rules import quantize_rules, without_effect_of_quantize

# Verbs for which the keys of training are only there because one file serves all verbs.
NOT_TRAINING = ("generate", "chat", "export", "split", "convert", "data", "quantize")
_VISION = re.compile(r"(?i)ERNIE-4\.5-VL|PaddleOCR-VL")

RuleResult = Iterator[tuple[str, str]]


def broken_rules(config: Config, verb: str, written: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (key, message) of each rule that does not hold; the message starts with the keys.

    Args:
        written: the spelling of the values that were given.
    """
    found = list(_answer_length(config))
    if verb == "quantize":
        found += quantize_rules(config)
    if verb not in NOT_TRAINING:
        found += [broken for rule in _RULES for broken in rule(config)]
        found += [*_quantised(config), *_started_from(config)] if verb != "eval" else ()
        found += [*_stages(config), *_experts(config)] if verb not in ("eval", "plan") else ()
        found += _padding(config, written.get("pad_to_max_seqlen", ""))
    return found


def without_effect(config: Config, verb: str) -> Iterator[tuple[str, str]]:
    """The (key, reason) of keys that other values leave nothing to do, should they have been given."""
    if verb == "quantize":
        yield from without_effect_of_quantize(config)
    if verb in (*NOT_TRAINING, "eval"):
        return
    if config.model.fine_tuning == "Full":
        yield from _fields(
            config.lora, "of an adapter, and fine_tuning: Full trains none; write fine_tuning: LoRA"
        )
    elif config.lora.rslora_plus:
        for key in ("lora_alpha", "lora_plus_scale"):
            yield key, "4 with rslora_plus: true, whatever is given"
    recompute = config.recompute.recompute
    if recompute != "true":
        does = "chooses by itself" if recompute == "auto" else "recomputes no layer"
        for key in ("recompute_granularity", "refined_recompute", "no_recompute_layers", "use_recompute_moe"):
            yield key, f"of recompute: true, and recompute: {recompute} {does}"
    if not config.low_precision.use_fp8:
        yield from _fields(config.low_precision, "of use_fp8, which is false; write use_fp8: true")
    elif not _rows_travel(config):
        yield "fp8_dispatch", "of rows that travel to experts of other processes, and here none do"
    if config.qat.qat_scheme is None:
        yield from _fields(config.qat, "of qat_scheme, which is null; write qat_scheme: w4a8, say")
    elif config.qat.qat_scheme != "fp8_tensor":
        for key in ("apply_hadamard", "hadamard_block_size"):
            yield key, f"of fp8_tensor, which rotates, and qat_scheme is {config.qat.qat_scheme}"
    if config.parallel.pipeline_parallel_degree <= 1:
        yield from _fields(
            config.pipelining, "of pipeline_parallel_degree above 1, and one device has all the layers"
        )
    if config.run.stage != "DPO":
        yield from _fields(
            config.preference, f"of pairs of answers, and stage is {config.run.stage}; write stage: DPO"
        )
    if config.run.stage != "SFT":
        for key in ("train_on", "mask_thinking", "encode_one_turn"):
            yield key, f"of conversations in stage: SFT, and stage is {config.run.stage}"


def _rows_travel(config: Config) -> bool:
    keys = config.parallel
    if keys.moe_group == "mp":
        return keys.sequence_parallel
    return keys.moe_group != "dummy" or keys.expert_parallel_degree > 1


_OWN_REASONS = ("lora_path", "use_fp8", "qat_scheme")


def _fields(section: Any, reason: str) -> RuleResult:
    return ((field.name, reason) for field in fields(section) if field.name not in _OWN_REASONS)


def features_not_built(config: Config) -> list[tuple[str, str]]:
    """The (key, feature) of what the values together ask for and ErnieKit cannot do yet."""
    name = config.model.model_name_or_path
    if Path(name).is_dir():
        return []  # its config.json says what it is, whatever it is called
    found = []
    if _VISION.search(name):
        found.append(("model_name_or_path", "vision-language models"))
    return found


def _best_model(config: Config) -> RuleResult:
    evaluation = config.evaluation
    if evaluation.evaluation_strategy != "no":
        return
    if evaluation.load_best_model_at_end:
        yield (
            "load_best_model_at_end",
            "load_best_model_at_end: true needs evaluations, and evaluation_strategy is no; "
            "write evaluation_strategy: steps",
        )
    if evaluation.early_stopping_patience is not None:
        yield (
            "early_stopping_patience",
            "early_stopping_patience needs evaluations, and evaluation_strategy is no; "
            "write evaluation_strategy: steps",
        )


def _direction(config: Config) -> RuleResult:
    metric, greater = config.evaluation.metric_for_best_model, config.evaluation.greater_is_better
    if greater is not None and greater != (metric == "eval_accuracy"):
        yield (
            "greater_is_better",
            f"greater_is_better: {str(greater).lower()} with metric_for_best_model: {metric} would keep the "
            "worst checkpoint; leave greater_is_better out, it follows from the metric",
        )


def _held_out(config: Config) -> RuleResult:
    if config.evaluation.evaluation_strategy != "no" and not config.eval_data.eval_dataset_path:
        yield (
            "evaluation_strategy",
            f"evaluation_strategy: {config.evaluation.evaluation_strategy} needs held-out data, and "
            "eval_dataset_path is not given; give it, or write evaluation_strategy: no",
        )
    elif config.run.do_eval and not config.eval_data.eval_dataset_path:
        yield ("do_eval", "do_eval: true needs held-out data, and eval_dataset_path is not given")


def _saves_when_it_evaluates(config: Config) -> RuleResult:
    saving, evaluation = config.saving, config.evaluation
    if evaluation.load_best_model_at_end and saving.save_strategy == "no":
        strategy = evaluation.evaluation_strategy
        yield (
            "load_best_model_at_end",
            "load_best_model_at_end: true needs checkpoints, and save_strategy is no; "
            f"write save_strategy: {strategy if strategy != 'no' else 'steps'}",
        )


def _learning_rates(config: Config) -> RuleResult:
    schedule, peak = config.schedule, config.optimizer.learning_rate
    if schedule.min_lr > peak:
        yield (
            "min_lr",
            f"min_lr: {schedule.min_lr:g} is above learning_rate: {peak:g}; a floor is at most the peak",
        )
    if schedule.lr_scheduler_type == "polynomial" and schedule.lr_end > peak:
        yield ("lr_end", f"lr_end: {schedule.lr_end:g} is above learning_rate: {peak:g}")


def _wsd(config: Config) -> RuleResult:
    schedule = config.schedule
    if schedule.wsd_steady_steps is not None and schedule.lr_scheduler_type != "wsd":
        yield (
            "wsd_steady_steps",
            f"wsd_steady_steps belongs to lr_scheduler_type: wsd, and that is {schedule.lr_scheduler_type}",
        )


def _preference(config: Config) -> RuleResult:
    chosen = config.preference
    if config.run.stage != "DPO":
        return
    if chosen.offset_alpha and chosen.loss_type != "sigmoid":
        yield (
            "offset_alpha",
            f"offset_alpha belongs to loss_type: sigmoid, and that is {chosen.loss_type}; leave it out",
        )
    if chosen.label_smoothing and chosen.loss_type not in ("sigmoid", "simpo"):
        yield (
            "label_smoothing",
            f"label_smoothing belongs to loss_type: sigmoid or simpo, and that is {chosen.loss_type}; "
            "leave it out",
        )
    if not chosen.pref_loss_ratio and not chosen.sft_loss_ratio:
        yield ("pref_loss_ratio", "pref_loss_ratio: 0 and sft_loss_ratio: 0 leave no loss; raise one of them")
    if chosen.ref_model_update_steps > 0:
        given = f"ref_model_update_steps: {chosen.ref_model_update_steps}"
        for reason in _why_no_reference_moves(config):
            yield "ref_model_update_steps", f"{given} {reason}"
    if config.routing.token_balance_loss:
        yield ("token_balance_loss", "token_balance_loss is a loss of tokens; stage: DPO has one of pairs")


def _why_no_reference_moves(config: Config) -> Iterator[str]:
    chosen, method = config.preference, config.model.fine_tuning
    if chosen.reference_free or chosen.loss_type in ("simpo", "or", "orpo"):
        yield (
            f"needs a reference model, and loss_type: {chosen.loss_type} (reference_free: "
            f"{str(chosen.reference_free).lower()}) has none; leave ref_model_update_steps out"
        )
        return
    if method != "Full":
        yield (
            f"moves a whole model, and fine_tuning: {method} trains an adapter, whose reference is the "
            "model without it; leave ref_model_update_steps out"
        )
    if chosen.ref_logps == "precompute":
        yield "changes the reference, and ref_logps: precompute asks it only once; write ref_logps: model"
    if config.saving.use_async_save:
        yield "needs checkpoints that are written while nothing moves; write use_async_save: false"


def _shares(config: Config) -> RuleResult:
    for paths_key, paths, shares_key, shares, types_key, types in (
        (
            "train_dataset_path",
            config.train_data.train_dataset_path,
            "train_dataset_prob",
            config.train_data.train_dataset_prob,
            "train_dataset_type",
            config.train_data.train_dataset_type,
        ),
        (
            "eval_dataset_path",
            config.eval_data.eval_dataset_path,
            "eval_dataset_prob",
            config.eval_data.eval_dataset_prob,
            "eval_dataset_type",
            config.eval_data.eval_dataset_type,
        ),
    ):
        count = _count(paths)
        if paths and shares and _count(shares) != count:
            yield (
                shares_key,
                f"{shares_key} has {_count(shares)} entries and {paths_key} {count}; give one each",
            )
        if paths and types and _count(types) not in (1, count):
            yield (
                types_key,
                f"{types_key} has {_count(types)} entries and {paths_key} {count}; give one, or one each",
            )


def _padding(config: Config, written: str) -> RuleResult:
    """Some files write the length itself where true is meant."""
    length, limit = written.replace("_", ""), config.sequences.max_seq_len
    if config.sequences.pad_to_max_seqlen and length.isdecimal() and int(length) not in (1, limit):
        yield (
            "pad_to_max_seqlen",
            f"pad_to_max_seqlen: {written} is not max_seq_len: {limit}; write pad_to_max_seqlen: true, "
            "and the length as max_seq_len",
        )


def _answer_length(config: Config) -> RuleResult:
    least, most = config.generation.min_tokens, config.generation.max_new_tokens
    if least > most:
        yield (
            "min_tokens",
            f"min_tokens: {least} is above max_new_tokens: {most}; no answer could be long enough",
        )


def _count(text: str | None) -> int:
    return len([part for part in (text or "").split(",") if part.strip()])


def _started_from(config: Config) -> RuleResult:
    path = config.lora.lora_path
    if not path or not config.run.do_train:
        return
    if config.model.fine_tuning == "Full":
        yield (
            "lora_path",
            f"lora_path: {path} with fine_tuning: Full would train without the adapter; write "
            "fine_tuning: LoRA to go on training it, or merge it first with erniekit export",
        )
    elif _count(path) > 1:
        yield "lora_path", f"lora_path names {_count(path)} adapters, and one is trained; name one"


def _adapter(config: Config) -> RuleResult:
    method = config.model.fine_tuning
    if method != "Full" and not config.model.continue_training:
        yield (
            "continue_training",
            f"continue_training: false with fine_tuning: {method} would freeze random weights under the "
            "adapter; leave it out, or write fine_tuning: Full",
        )


def _quantised(config: Config) -> RuleResult:
    method, numbers = config.model.fine_tuning, config.model.compute_type
    if numbers not in QUANTISED or not config.run.do_train:
        return
    if method == "Full":
        yield (
            "compute_type",
            f"compute_type: {numbers} keeps weights in few bits, which cannot be trained, and fine_tuning: "
            "Full trains them; write fine_tuning: LoRA, or compute_type: auto",
        )
    elif method == "PiSSA":
        yield (
            "compute_type",
            f"compute_type: {numbers} keeps weights in few bits, and fine_tuning: PiSSA begins with taking a "
            "part out of each weight, which needs them in full; write fine_tuning: LoRA or DoRA, or "
            "compute_type: auto",
        )


def _fp8(config: Config) -> RuleResult:
    if config.low_precision.use_fp8 and config.model.fine_tuning != "Full":
        yield (
            "use_fp8",
            f"use_fp8: true rounds the weights that are trained, and fine_tuning: {config.model.fine_tuning} "
            "trains none of them; write fine_tuning: Full, or leave use_fp8 out",
        )


def _qat(config: Config) -> RuleResult:
    scheme, method, numbers = config.qat.qat_scheme, config.model.fine_tuning, config.model.compute_type
    if scheme is None or not config.run.do_train:
        return
    given = f"qat_scheme: {scheme}"
    if config.qat.qat_learn_scales and method == "LoRA":
        yield (
            "qat_learn_scales",
            "qat_learn_scales: true learns scales by the gradients of whole weights, and fine_tuning: LoRA "
            "keeps none; leave it out, or write fine_tuning: Full",
        )
    if config.qat.qat_learn_scales and scheme.startswith("fp8"):
        yield (
            "qat_learn_scales",
            f"qat_learn_scales: true moves the steps between numbers, and those of {given} follow from "
            "exponents; leave it out, or train for a scheme of int8, int4, int2 or nf4",
        )
    if config.qat.qat_learn_scales and scheme == "wint4_g32":
        yield (
            "qat_learn_scales",
            f"qat_learn_scales: true learns scales that are above zero, and those of {given} have signs; "
            "leave it out, or train for wint4_g64",
        )
    if config.low_precision.use_fp8:
        yield (
            "qat_scheme",
            f"{given} and use_fp8: true both say which numbers products are of; leave one of them out",
        )
    if numbers in QUANTISED:
        yield (
            "qat_scheme",
            f"{given} trains weights for their rounding, and compute_type: {numbers} has them rounded "
            "before; write compute_type: auto",
        )
    if method in ("DoRA", "PiSSA"):
        yield (
            "qat_scheme",
            f"{given} rounds the weight with its adapter, which is not built with fine_tuning: {method}; "
            "write fine_tuning: LoRA or Full",
        )
    elif method == "LoRA" and config.lora.lora_dropout:
        yield (
            "lora_dropout",
            f"lora_dropout: {config.lora.lora_dropout:g} hides inputs from the adapter alone, and {given} "
            "multiplies with the weight and the adapter as one; leave it out",
        )


def _stages(config: Config) -> RuleResult:
    """What does not go with a model in stages."""
    degree = config.parallel.pipeline_parallel_degree
    if degree <= 1:
        return
    where = f"with pipeline_parallel_degree: {degree}"
    if config.parallel.sharding in ("stage2", "stage3"):
        yield (
            "sharding",
            f"sharding: {config.parallel.sharding} gives gradients or parameters away in every micro-batch, "
            f"and {where} several are under way at once; write sharding: stage1",
        )
    if config.run.stage == "DPO" and config.preference.ref_model_update_steps > 0:
        yield (
            "ref_model_update_steps",
            f"ref_model_update_steps: {config.preference.ref_model_update_steps} asks a second model in "
            f"every step, which is not built {where}; leave it out",
        )
    elif config.run.stage == "DPO" and config.preference.ref_logps == "model":
        yield (
            "ref_logps",
            f"ref_logps: model runs the model twice for a micro-batch, and {where} it goes through the "
            "stages once; write ref_logps: precompute",
        )


def _experts(config: Config) -> RuleResult:
    """What does not go with experts over several processes, or with routers in them."""
    keys = config.parallel
    over_all = keys.moe_group == "world" or (keys.moe_group == "dummy" and keys.expert_parallel_degree > 1)
    if over_all and keys.tensor_parallel_degree > 1 and not keys.sequence_parallel:
        yield (
            "moe_group",
            f"moe_group: {keys.moe_group} would compute every token {keys.tensor_parallel_degree} times with "
            f"tensor_parallel_degree: {keys.tensor_parallel_degree}; write sequence_parallel: true, or "
            "moe_group: mp or dp",
        )
    if config.routing.global_aux_loss and keys.pipeline_parallel_degree > 1:
        yield (
            "global_aux_loss",
            "global_aux_loss: true is not built with pipeline_parallel_degree: "
            f"{keys.pipeline_parallel_degree}; leave it out",
        )


def _nothing_to_do(config: Config) -> RuleResult:
    if not config.run.do_train and not config.run.do_eval:
        yield ("do_train", "do_train: false and do_eval: false leave nothing to do; make one of them true")


def _recomputation(config: Config) -> RuleResult:
    chosen = config.recompute
    if chosen.refined_recompute and (chosen.recompute, chosen.recompute_granularity) != ("true", "selective"):
        yield (
            "refined_recompute",
            f"refined_recompute names operators, and recompute: {chosen.recompute} with "
            f"recompute_granularity: {chosen.recompute_granularity} does not ask for them; write "
            "recompute: true and recompute_granularity: selective",
        )
    if chosen.memory_limit_gb is not None and chosen.recompute != "auto":
        yield (
            "memory_limit_gb",
            f"memory_limit_gb is for recompute: auto, and recompute is {chosen.recompute}; write "
            "recompute: auto, or leave memory_limit_gb out",
        )
    if chosen.recompute == "false":
        return
    if chosen.offload_recompute_inputs and config.run.device == "cpu":
        yield (
            "offload_recompute_inputs",
            "offload_recompute_inputs moves tensors from a GPU to main memory, and device is cpu; "
            "leave it out",
        )


_RULES: tuple[Callable[[Config], RuleResult], ...] = (
    _best_model,
    _direction,
    _held_out,
    _saves_when_it_evaluates,
    _learning_rates,
    _wsd,
    _recomputation,
    _adapter,
    _preference,
    _shares,
    _fp8,
    _qat,
    _nothing_to_do,
)
