import erniekit
from erniekit import errors


def test_input_errors_exit_with_two_and_failures_with_one():
    codes = {name: getattr(errors, name).exit_code for name in dir(errors) if name.endswith("Error")}
    assert codes == {
        "ErnieKitError": 1,
        "ConfigError": 2,
        "DataError": 2,
        "UnsupportedError": 2,
        "CheckpointError": 1,
        "MissingModelError": 2,
        "RunError": 1,
        "PeerError": 76,
    }


def test_the_public_names_resolve_to_these():
    assert erniekit.ConfigError is errors.ConfigError
    assert all(getattr(erniekit, name) is not None for name in erniekit.__all__)
