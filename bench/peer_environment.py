"""Environments that have a peer and see our packages too, so that both share torch."""

from __future__ import annotations

import site
import subprocess
import sysconfig
import venv
from pathlib import Path


def peer_python(environment: Path, *requirements: str) -> Path:
    """Its interpreter; the environment is made the first time.

    Ours are seen through a path file, and the peer has its own folder beside them.
    """
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        paths = {"base": str(environment.absolute()), "platbase": str(environment.absolute())}
        packages = Path(sysconfig.get_path("purelib", vars=paths))
        ours = [*site.getsitepackages(), str(Path.cwd())]
        (packages / "plumbline.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python
