"""Install torch from the first place that has it: a folder of wheels, PyTorch's index of CPU builds, or PyPI.

The Makefile and the trainer's image run this with a Python that has uv beside it; nothing else has to be installed. Settings
are environment variables:

TORCH_SOURCE   wheels, index or pypi: take torch from there and nowhere else
TORCH_WHEELS   a folder of wheels to look into, instead of build/wheels and ../shared/wheels
TORCH_INDEX    the URL of a package index with torch's CPU build, instead of PyTorch's own
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE.parent / "build" / "wheels", HERE.parent.parent / "shared" / "wheels")
CPU_LOCK, PYPI_LOCK = HERE / "torch-cpu.txt", HERE / "torch-pypi.txt"
# torch-cpu.txt has the hash of this platform's wheel. On others, a CPU build is held to its version alone.
HASHED = ("Linux", "x86_64", (3, 11))
CPU_SIZE = "up to 0.2 GB"
# PyPI's build for Linux is the one for CUDA and CPU, with NVIDIA's libraries.
PYPI_SIZES = {("Linux", "x86_64"): "up to 2.7 GB", ("Linux", "aarch64"): "up to 2.9 GB", ("Darwin", "arm64"): "up to 0.1 GB"}
CONNECT_SECONDS, ANSWER_SECONDS = "2", "3"


class Uv:
    """uv, which installs into one Python."""

    def __init__(self, python: str) -> None:
        self.install = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-deps", "--python", python]

    def has(self, version: str, options: list[str]) -> bool:
        """Whether a source has this version of torch for this Python; asked once, and briefly."""
        limits = {"UV_HTTP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": CONNECT_SECONDS, "UV_HTTP_TIMEOUT": ANSWER_SECONDS}
        ask = [*self.install, "--dry-run", "--reinstall-package", "torch", "--refresh-package", "torch", *options]
        done = subprocess.run([*ask, f"torch=={version}"], env=os.environ | limits, capture_output=True, check=False)
        return done.returncode == 0

    def take(self, options: list[str]) -> None:
        """Install; uv itself says what is wrong."""
        if code := subprocess.run([*self.install, *options], check=False).returncode:
            sys.exit(code)


def sources(only: str) -> Iterator[tuple[str, list[str], str, str]]:
    """Name, uv's options, what is downloaded, and what to say where it does not have torch; in the order to ask them."""
    system, machine = platform.system(), platform.machine()
    given = os.environ.get("TORCH_WHEELS")
    for folder in [Path(given)] if given else FOLDERS:
        if only in ("", "wheels") and any(folder.glob("torch-*.whl")):
            lacking = f"no wheel in {os.path.relpath(folder)} is for Python {platform.python_version()} on {system} {machine}"
            yield f"from {os.path.relpath(folder)}", ["--no-index", "--find-links", str(folder)], "nothing", lacking
    url = os.environ.get("TORCH_INDEX")
    # For macOS, PyPI has the build for the CPU itself.
    if only == "index" or (not only and (url or system != "Darwin")):
        name = f"the index {url}" if url else "PyTorch's index of CPU builds"
        options = ["--default-index", url] if url else ["--torch-backend", "cpu"]
        yield f"from {name}", options, CPU_SIZE, f"{name} does not answer, or does not have it"
    if only in ("", "pypi"):
        build = "from PyPI" if system == "Darwin" else "from PyPI, the build for CUDA and CPU"
        yield build, [], PYPI_SIZES.get((system, machine), "up to 3 GB"), ""


def install(uv: Uv, version: str, only: str, *, dry_run: bool) -> bool:
    """Take the first source that has this version, and say which; whether it was installed from PyPI."""
    hashed = (platform.system(), platform.machine(), sys.version_info[:2]) == HASHED
    reasons: list[str] = []
    for name, options, size, lacking in sources(only):
        if lacking and not uv.has(version, options):
            reasons.append(lacking)
            continue
        print(f"torch: {version} {name}; downloads {size}" + (f" ({'; '.join(reasons)})" if reasons else ""), flush=True)
        if dry_run:
            return False
        locked = CPU_LOCK if lacking else PYPI_LOCK
        uv.take([*options, *(["--require-hashes", "-r", str(locked)] if hashed or not lacking else [f"torch=={version}"])])
        return not lacking
    sys.exit(f"torch: TORCH_SOURCE={only} has no torch {version}: {'; '.join(reasons) or 'there is no such folder with a wheel'}")


# Removes what `import torch` does not load on a machine without a GPU.
SLIM = """
import shutil, torch, torch.distributed
from pathlib import Path
site = Path(torch.__file__).parents[1]
loaded = {line.split()[-1] for line in open("/proc/self/maps")}
for path in [*site.glob("nvidia/**/*"), *site.glob("torch/lib/libtorch_cuda_linalg.so")]:
    if path.is_file() and str(path) not in loaded:
        path.unlink()
for path in [*site.glob("triton"), *site.glob("triton-*.dist-info"), *site.glob("cuda"), *site.glob("cuda_*.dist-info")]:
    shutil.rmtree(path)
"""


def main() -> None:
    """Read the command line and the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python to install into, of this version")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be taken")
    parser.add_argument("--slim", action="store_true", help="for the CPU alone: remove what CUDA's build does not load there")
    arguments = parser.parse_args()
    only = os.environ.get("TORCH_SOURCE", "")
    if only not in {"", "wheels", "index", "pypi"}:
        sys.exit(f"TORCH_SOURCE must be wheels, index or pypi, not {only!r}")
    version = (HERE / "torch.in").read_text(encoding="utf-8").strip().removeprefix("torch==")
    from_pypi = install(Uv(arguments.python), version, only, dry_run=arguments.dry_run)
    if arguments.slim and from_pypi:
        subprocess.run([arguments.python, "-W", "ignore", "-c", SLIM], check=True)
        subprocess.run([arguments.python, "-W", "ignore", "-c", "import torch.distributed"], check=True)


if __name__ == "__main__":
    main()
