"""Environments of their own for peers, under build/peers: what a peer needs never reaches ours."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PEERS: Final = Path(__file__).parents[2] / "build" / "peers"
_TIMEOUT_S: Final = 900


@dataclass(frozen=True)
class Environment:
    """One peer's packages. `imports` are the modules that must be there afterwards."""

    name: str
    requirements: Sequence[str]
    imports: Sequence[str]
    overrides: Sequence[str] = ()
    """Requirements that replace what the packages ask for."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the installation's environment."""
    takes: str = ""
    """What to say of how long it takes."""

    @property
    def directory(self) -> Path:
        return _PEERS / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def install(self) -> str | None:
        """Have it there. Returns why it is not, or None."""
        if not self.python.exists():
            print(f"installing {self.name} into build/peers, once: {self.takes} …", file=sys.stderr)
            failure = self._installed()
            if failure:
                return f"installing it failed {failure}; remove {self.directory} to try again"
        probe = subprocess.run([self.python, "-c", f"import {', '.join(self.imports)}"], capture_output=True)
        return None if probe.returncode == 0 else f"it cannot be imported; remove {self.directory} to install it anew"

    def _installed(self) -> str | None:
        uv = Path(sys.executable).with_name("uv")
        try:
            made = subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, self.directory], check=False)
            if made.returncode:
                return f"with exit code {made.returncode}"
            overrides = self.directory / "overrides.txt"
            overrides.write_text("\n".join(self.overrides))
            done = subprocess.run(
                [uv, "pip", "install", "--quiet", "--python", self.python, "--override", overrides, *self.requirements],
                env={**os.environ, **self.variables},
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"because of {error}"
        return f"with exit code {done.returncode}" if done.returncode else None
