"""LeanTAD's package list and dependencies; `make setup` installs it with the versions of constraints.txt."""

from setuptools import setup

setup(
    name="leantad",
    version="0.1.0",
    description="Trains temporal action detectors end to end, from raw video, in the memory of a small GPU",
    python_requires=">=3.10,<3.14",
    # By hand: the names are generic, and find_packages would pick up whatever lies beside them.
    packages=[
        "pipeline",
        "pipeline.packing",
        "model",
        "model.backbones",
        "model.detector",
        "model.tracing",
        "train",
        "train.evaluation",
        "train.report",
        "tools",
        "tools.benchmarks",
        "tools.dataset",
        "tools.machine",
        "tools.planning",
        "tools.synthetic",
        "tools.viewer",
        "tools.weights",
        "tools.weights.names",
    ],
    py_modules=["settings_group"],
    package_data={
        "train": ["recipes/*.yaml"],
        "train.report": ["*.j2", "*.css"],
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
        ]
    },
    entry_points={"console_scripts": ["leantad = tools.cli:main"]},
)
