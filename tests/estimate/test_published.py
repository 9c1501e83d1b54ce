from erniekit.checkpoint.presets import find_preset
from erniekit.estimate.plans import Model
from erniekit.estimate.published import RUNS, estimates, table
from erniekit.models.registry import config_from_json, load_family


def model():
    preset = find_preset("ERNIE-4.5-300B-A47B")
    numbers = config_from_json(preset.model_type, preset.config, source=preset.name)
    family = load_family(numbers)
    return Model(numbers, family.weights.memory_shapes(numbers), family.plan)


def test_devices_are_those_of_the_runs():
    devices = [estimate.spread.world_size for _, estimate in estimates(model())]
    assert devices == [40, 120, 96, 16, 2016, 2016, 2016]
    # All weights are somewhere: the parameters of the ranks of 40 devices add up.
    first = next(iter(estimates(model())))[1]
    total = 8 * sum(rank.parameters for rank in first.ranks)
    assert 299_484_163_264 <= total < 1.001 * 299_484_163_264


def test_the_published_minimum_fits_and_the_degrees_alone_do_not():
    fits = {run.name: estimate.fits for run, estimate in estimates(model())}
    assert fits["SFT 8k, TP8 PP12"] and not fits["SFT 8k, TP8 PP5"]


def test_a_row_for_every_run():
    assert len(table(model()).splitlines()) == len(RUNS) + 2
