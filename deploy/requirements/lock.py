"""`make lock`: pin every package of the image, with its hashes, as PyPI has them today.

`common.txt` is what both images install; `cuda.txt` is PyTorch with the CUDA libraries that it brings.
`cpu.txt` is written by hand and must name the same version of PyTorch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
GPU_PACKAGES = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
RESOLVE = (
    *("uv", "pip", "compile", "--no-config", "--quiet", "--generate-hashes", "--no-header"),
    *("--no-annotate", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
    *("--extra", "tracing"),
)
HEADER = "# Written by `make lock`: {}.\n"


def main() -> None:
    """Resolve pyproject.toml, and write the packages to their files."""
    uv = Path(sys.executable).with_name(RESOLVE[0])
    project = HERE.parents[1] / "pyproject.toml"
    done = subprocess.run(
        [str(uv), *RESOLVE[1:], str(project)], stdout=subprocess.PIPE, text=True, check=True
    )
    packages = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)
    for_gpus = [package for package in packages if GPU_PACKAGES.match(package)]
    others = [package for package in packages if package not in for_gpus]
    for name, what, chosen in (
        ("common.txt", "what every image installs beside PyTorch", others),
        ("cuda.txt", "PyTorch and its CUDA libraries", for_gpus),
    ):
        (HERE / name).write_text(HEADER.format(what) + "".join(chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
