"""LeanTAD's package list and dependencies; `make setup` installs it with the versions of constraints.txt."""

from pathlib import Path

from setuptools import setup

ROOMS = ("pipeline", "model", "train", "tools")

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
    package_data={room: ["py.typed"] for room in ROOMS}
    | {"train": ["py.typed", "recipes/*.yaml"], "tools.viewer": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "torch",
        "nvidia-dali-cuda130",
        "webdataset",
        "deepspeed",
        "numpy",
        "click",
        "h5py",
        "pydantic>=2",
        "PyYAML",
        "safetensors",
        "av",
        "tqdm",
        "matplotlib",
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
