"""LeanTAD's package list and dependencies; `make setup` installs it with the versions of constraints.txt."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):
    """Puts ds_config.json, which a run reads, beside the packages, as it lies in a checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file("ds_config.json", str(Path(self.build_lib) / "ds_config.json"))

    def get_source_files(self):
        return [*super().get_source_files(), "ds_config.json"]


setup(
    name="leantad",
    version="0.1.0",
    description="Trains temporal action detectors end to end, from raw video, in the memory of a small GPU",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The LeanTAD authors",
    keywords=["temporal action detection", "video", "reversible networks", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
        "Private :: Do Not Upload",  # the import names are generic; see the packages below
    ],
    python_requires=">=3.10,<3.14",
    # By hand: the names are generic, and find_packages would pick up whatever lies beside them.
    packages=[
        "pipeline",
        "pipeline.features",
        "pipeline.packing",
        "model",
        "model.backbones",
        "model.detector",
        "model.detector.actionformer",
        "model.detector.etad",
        "model.tracing",
        "train",
        "train.evaluation",
        "train.report",
        "tools",
        "tools.ablation",
        "tools.benchmarks",
        "tools.dataset",
        "tools.features",
        "tools.gpu_checks",
        "tools.labels",
        "tools.machine",
        "tools.planning",
        "tools.prediction",
        "tools.synthetic",
        "tools.viewer",
        "tools.weights",
        "tools.weights.names",
    ],
    py_modules=["leantad", "settings_group"],
    package_data={
        "pipeline": ["py.typed"],
        "model": ["py.typed"],
        "train": ["py.typed", "recipes/*.yaml"],
        "train.report": ["*.j2", "*.css"],
        "tools": ["py.typed"],
        "tools.viewer": ["*.j2", "*.css", "*.js"],
    },
    install_requires=[
        "torch",
        "nvidia-dali-cuda130",
        "webdataset",
        "fsspec[http]",
        "deepspeed",
        "numpy",
        "click",
        "Jinja2",
        "h5py",
        "pydantic>=2.7",
        "PyYAML",
        "safetensors",
        "av",
        "tqdm",
        "tensorboard",
    ],
    extras_require={
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "pandas",
            "ruff",
            "mypy",
            "types-PyYAML",
            "transformers",
            "selenium",
        ],
        # Other libraries' networks as backbones (docs/any-network.md). timm brings torchvision.
        "timm": ["timm"],
        "torchvision": ["torchvision"],
        "transformers": ["transformers"],
    },
    cmdclass={"build_py": BuildWithConfig},
    entry_points={"console_scripts": ["leantad = tools.cli:main"]},
)
