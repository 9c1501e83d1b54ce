"""Secrets are neither shown nor saved."""

from pathlib import Path

import pytest

from erniekit.config.aliases import ALIASES
from erniekit.config.hidden import is_secret
from erniekit.config.keys import declared_keys, upstream_keys
from erniekit.config.load import load_config
from erniekit.errors import ErnieKitError
from tests.config.loading import LEAST, load, write

SECRET = "s3cr3t-of-mine"


@pytest.mark.parametrize(
    "text",
    [
        f"wandb_api_kye: {SECRET}\n",
        f"hf_token: {SECRET}\n",
        f"hf_tokn: {SECRET}\n",
        f"my_pasword: {SECRET}\n",
        f"AWS_SECRET_ACCESS: [{SECRET}]\n",
        f"wandb: {{api_key: {SECRET}, seed: 1}}\n",
        f"hub: {{password: {SECRET}}}\n",
        f"tracker: [{{token: {SECRET}}}]\n",
        f"x-token: {SECRET}\nrun_name: ${{x-token}}\n",
        f"x-token: {SECRET}\nlearning_rate: ${{x-token}}\n",
        "output_dir: ${oc.env:EK_TEST_TOKEN}\n",
        "learning_rate: ${oc.env:EK_TEST_TOKEN}\n",
        f"wandb_api_key: {SECRET}\nwandb_api_key: {SECRET}\n",
    ],
)
def test_a_secret_is_in_no_message(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EK_TEST_TOKEN", SECRET)
    for words in ([], ["learning_rate=fast"], ["wandb_api_key", SECRET], ["--hub_tokne", SECRET]):
        with pytest.raises(ErnieKitError) as caught:
            load_config(write(tmp_path, LEAST + text), words, verb="train")
        assert SECRET not in str(caught.value)
        assert "run.yaml" in str(caught.value)


def test_a_secret_is_neither_in_notices_nor_in_the_saved_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EK_TEST_TOKEN", SECRET)
    text = f"wandb_api_key: {SECRET}\nx-my-token: {SECRET}\nx-hub: {{password: {SECRET}, name: me}}\n"
    text += "x-hub-token: ${oc.env:EK_TEST_TOKEN}\n"
    loaded = load(tmp_path, text)
    assert [notice.split(":")[0] for notice in loaded.notices] == ["wandb_api_key"]
    assert SECRET not in str(loaded.notices) + loaded.to_yaml() + str(loaded.notes)
    assert loaded.notes["x-hub"] == {"password": "***", "name": "me"}


def test_of_the_known_keys_only_secrets_are_hidden() -> None:
    known = {*declared_keys(), *upstream_keys(), *ALIASES}
    assert [key for key in known if is_secret(key)] == ["wandb_api_key"]
    assert not is_secret("tokenizer_path")
