"""`erniekit plan`: memory, communication and time of a run on several devices, before anything starts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erniekit.config.load import LoadedConfig
    from erniekit.estimate.machines import Machine
    from erniekit.estimate.parallel import Estimate
    from erniekit.estimate.plans import Model, Pipelining

HELP = "memory, communication and time of a run on several devices, before it starts"
USAGE = """usage: erniekit plan CONFIG [key=value ...] [machine words] [--json]
       erniekit plan search CONFIG devices=N [key=value ...] [machine words] [--json]
       erniekit plan published

Tells what a rank of each pipeline stage holds, by cause, which is the worst, what it sends by axis,
the bubble, the time of a step and MFU; where it does not fit, which changes make it fit. Needs neither
Paddle nor devices: a model folder, or a name of `erniekit models list`.

search     the plans for N devices that fit, the fastest first, with as many sequences a step
published  ERNIE 4.5 300B as it was published beside the estimate, as a Markdown table

Machine words, which belong in no configuration:
  machine=H800          H800, H100, A100 or cpu; the others change its numbers
  devices=N             processes in all; what the degrees leave is data parallel
  memory_gb=80          of a device (2^30 bytes); 90 % of it may be filled
  peak_tflops=989       in bf16 (of a CPU in its type)
  intra_gb_s, inter_gb_s   bandwidth of a device within and between nodes, one direction (10^9 bytes)
  devices_per_node=8
  efficiency=0.6        share of the peak that kernels reach; it scales every time
  sample_tokens=N       tokens of a sample on average; max_seq_len without it
  --json                one JSON object on standard output

  erniekit plan examples/configs/ERNIE-4.5-300B-A47B/sft/run_sft_8k.yaml
  erniekit plan search run.yaml devices=64 machine=A100

Exit codes: 0 it fits, 1 it does not, 2 the input is wrong."""

# Word -> (name in `Machine`, factor).
_MACHINE = {
    "memory_gb": ("memory", 2**30),
    "peak_tflops": ("peak", 1e12),
    "intra_gb_s": ("within", 1e9),
    "inter_gb_s": ("between", 1e9),
    "devices_per_node": ("devices_per_node", 1),
    "efficiency": ("efficiency", 1),
}
_OTHERS = ("machine", "devices", "sample_tokens")
_SHOWN = 10


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    if argv[:1] == ["published"]:
        return _published(argv[1:])
    searched = argv[:1] == ["search"]
    words, options, as_json = _take_words(argv[1:] if searched else argv)
    from erniekit.cli.arguments import read_config

    loaded = read_config(words, "plan")
    machine = _machine(options, loaded)
    model = _model(loaded)
    return (_search if searched else _plan)(loaded, model, machine, options, as_json)


def _take_words(argv: list[str]) -> tuple[list[str], dict[str, float | str], bool]:
    """Words of the configuration, of the machine, and whether JSON is wanted."""
    from erniekit.errors import ConfigError

    options: dict[str, float | str] = {}
    words = []
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--json" or name not in (*_MACHINE, *_OTHERS) or not equals:
            words += [] if word == "--json" else [word]
            continue
        if name == "machine":
            options[name] = value
            continue
        whole = name in ("devices", "devices_per_node", "sample_tokens")
        try:
            number: float = int(value) if whole else float(value)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{name}={value}: write {kind} above 0")
        options[name] = number
    return words, options, "--json" in argv


def _machine(options: Mapping[str, Any], loaded: "LoadedConfig") -> "Machine":
    from erniekit.errors import ConfigError
    from erniekit.estimate.machines import MACHINES

    default = "cpu" if loaded.config.run.device == "cpu" else "H800"
    name = options.get("machine", default)
    if name not in MACHINES:
        raise ConfigError(
            f"machine={name}: write one of {', '.join(MACHINES)}, and numbers of your own beside"
        )
    changes = {field: options[word] * factor for word, (field, factor) in _MACHINE.items() if word in options}
    if changes.get("efficiency", 0) > 1:
        raise ConfigError(f"efficiency={options['efficiency']:g}: a share of the peak is at most 1")
    return MACHINES[name].changed(**changes)


def _model(loaded: "LoadedConfig") -> "Model":
    """The numbers of the model, and what of it is trained."""
    from erniekit.checkpoint.presets import STARTER, find_preset
    from erniekit.errors import ConfigError
    from erniekit.estimate.asked import asked_model
    from erniekit.models.registry import config_from_json
    from erniekit.train.devices import known_numbers

    name = loaded.config.model.model_name_or_path
    preset = find_preset(STARTER) if name == STARTER else None
    numbers = known_numbers(name)
    if preset is not None and numbers is None:
        numbers = config_from_json(preset.model_type, preset.config, source=name)
    if numbers is None:
        place = loaded.sources["model_name_or_path"]
        raise ConfigError(
            f"{place}: model_name_or_path: {name or 'nothing'} is neither a model folder nor a known name; "
            "its numbers are needed (erniekit models list, or erniekit models get)"
        )
    return asked_model(loaded.config, numbers)


def _plan(
    loaded: "LoadedConfig", model: "Model", machine: "Machine", options: Mapping[str, Any], as_json: bool
) -> int:
    import json

    from erniekit.estimate.asked import asked_pipelining, asked_spread, asked_workload
    from erniekit.estimate.plan_words import lines
    from erniekit.estimate.plans import automatic, make_plan, remedies
    from erniekit.log import console

    config = loaded.config
    with _Places(loaded):
        spread = asked_spread(config, model.numbers, options.get("devices"))
        pipelining = asked_pipelining(config)
        attended = options.get("sample_tokens", float("inf"))
        workload = asked_workload(config, model.numbers, machine, attended)
        estimate = make_plan(model, spread, workload, machine, pipelining)
        if config.recompute.recompute == "auto":
            estimate = automatic(model, estimate, pipelining)
    changes = [] if estimate.fits else list(remedies(model, estimate, pipelining))
    if as_json:
        facts = as_dict(estimate, pipelining)
        facts["remedies"] = [{"change": words} | _short(tried) for words, tried in changes]
        console.print_json(json.dumps(facts))
    else:
        for line in (*lines(estimate), *_remedy_lines(estimate, changes)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if estimate.fits else 1


def _search(
    loaded: "LoadedConfig", model: "Model", machine: "Machine", options: Mapping[str, Any], as_json: bool
) -> int:
    import json

    from erniekit.errors import ConfigError
    from erniekit.estimate.asked import asked_spread, asked_workload
    from erniekit.estimate.plans import search
    from erniekit.log import console

    if "devices" not in options:
        raise ConfigError("erniekit plan search needs devices=N, the number to spread over")
    attended = options.get("sample_tokens", float("inf"))
    with _Places(loaded):
        workload = asked_workload(loaded.config, model.numbers, machine, attended)
        batch = asked_spread(loaded.config, model.numbers).batch
    sequences = batch * workload.rows * workload.micro_batches
    found = search(model, workload, machine, devices=options["devices"], sequences=sequences)
    if as_json:
        console.print_json(json.dumps([as_dict(*plan) for plan in found[:_SHOWN]]))
        return 0 if found else 1
    console.print(
        f"{len(found)} plans of {options['devices']} {machine.name} fit; {sequences} sequences a step, the "
        "fastest first:" if found else
        f"no plan for {options['devices']} {machine.name} with {sequences} sequences a step fits",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    for estimate, pipelining in found[:_SHOWN]:
        short = _short(estimate)
        console.print(
            f"{short['seconds']:9.3g} s  MFU {100 * short['mfu']:4.1f} %  {short['worst_gib']:6.1f} GiB  "
            f"{_keys(estimate, pipelining)}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    return 0 if found else 1


def _published(argv: list[str]) -> int:
    from erniekit.checkpoint.presets import find_preset
    from erniekit.errors import ConfigError
    from erniekit.estimate.plans import Model
    from erniekit.estimate.published import table
    from erniekit.log import console
    from erniekit.models.registry import config_from_json, load_family

    if argv:
        raise ConfigError(f"erniekit plan published takes no words, and {argv[0]} was given")
    preset = find_preset("ERNIE-4.5-300B-A47B")
    assert preset is not None
    numbers = config_from_json(preset.model_type, preset.config, source=preset.name)
    family = load_family(numbers)
    text = table(Model(numbers, family.weights.memory_shapes(numbers), family.plan))
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    return 0


class _Places:
    """Says in an error which file and line the keys of its message are from."""

    def __init__(self, loaded: "LoadedConfig") -> None:
        self._sources = loaded.sources

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from erniekit.config.entries import DEFAULT
        from erniekit.errors import ConfigError

        if isinstance(error, ConfigError):
            places = [
                f"{source}: {key}"
                for key, source in self._sources.items()
                if key in str(error) and str(source) != DEFAULT
            ]
            if places:
                raise ConfigError("\n  ".join([str(error), *places])) from error


def _short(estimate: "Estimate") -> dict[str, Any]:
    return {
        "devices": estimate.spread.world_size,
        "worst_gib": round(estimate.ranks[estimate.worst].total / 2**30, 2),
        "seconds": estimate.seconds,
        "mfu": estimate.utilisation,
    }


def as_dict(estimate: "Estimate", pipelining: "Pipelining") -> dict[str, Any]:
    """All that is told, for programs: bytes, seconds, shares."""
    from dataclasses import asdict

    return {
        "layout": asdict(estimate.spread),
        "pipeline": asdict(pipelining),
        "machine": asdict(estimate.machine),
        **_short(estimate),
        "fits": estimate.fits,
        "allowed": int(estimate.allowed),
        "worst_rank": estimate.worst,
        "tokens": estimate.tokens,
        "tokens_per_second": estimate.tokens / estimate.seconds,
        "bubble": estimate.bubble,
        "time": {
            "pipeline": estimate.pipeline,
            "exposed": estimate.exposed,
            "update": estimate.update,
        },
        "micro_batches": estimate.workload.micro_batches,
        "ranks": [asdict(rank) | {"total": rank.total} for rank in estimate.ranks],
    }


def _remedy_lines(estimate: "Estimate", changes: list[tuple[str, "Estimate"]]) -> Iterator[str]:
    if estimate.fits:
        return
    yield ""
    yield (
        "it fits with:"
        if changes
        else "no single change makes it fit; try erniekit plan search with more devices"
    )
    for words, tried in changes:
        short = _short(tried)
        yield f"  {words}: {short['worst_gib']:.1f} GiB, {short['seconds']:.3g} s a step"


def _keys(estimate: "Estimate", pipelining: "Pipelining") -> str:
    """What to write for a plan that was found."""
    spread, again = estimate.spread, estimate.workload.recomputation
    keys: dict[str, Any] = {
        f"{axis}_parallel_degree": getattr(spread, axis)
        for axis in ("tensor", "pipeline", "context", "sharding")
        if getattr(spread, axis) > 1
    }
    if spread.sharding > 1:
        keys["sharding"] = f"stage{spread.sharding_stage}"
    if spread.sequence_parallel:
        keys["sequence_parallel"] = "true"
    if spread.expert > 1:
        keys |= {"moe_group": spread.moe_group, "expert_parallel_degree": spread.expert}
    if spread.pipeline > 1:
        keys |= {"pipeline_schedule": pipelining.schedule, "pp_seg_method": pipelining.pp_seg_method}
        if pipelining.virtual_pp_degree > 1:
            keys["virtual_pp_degree"] = pipelining.virtual_pp_degree
    keys["gradient_accumulation_steps"] = estimate.workload.micro_batches
    keys["recompute"] = "false" if again is None else "true"
    return " ".join(f"{key}={value}" for key, value in keys.items())
