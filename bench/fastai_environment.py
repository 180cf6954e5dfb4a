"""An environment that has fastai and sees our packages too, so that both share torch."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

FASTAI = "fastai==2.8.12"
ENVIRONMENT = Path("var/fastai-env")


def run_beside_fastai() -> None:
    """Go on in the environment that has fastai; it sees our packages too."""
    try:
        version("fastai")
    except ModuleNotFoundError:
        python = fastai_python()
        os.execv(python, [str(python), *sys.argv])


def fastai_python() -> Path:
    """Its interpreter; the environment is made the first time."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        make_environment(python)
    return python


def make_environment(python: Path) -> None:
    """Ours seen through a path file, and fastai in its own folder beside it."""
    venv.create(ENVIRONMENT, with_pip=True)
    paths = {"base": str(ENVIRONMENT.absolute()), "platbase": str(ENVIRONMENT.absolute())}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    ours = [*site.getsitepackages(), str(Path.cwd())]
    (packages / "plumbline.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", FASTAI], check=True)
