"""The C compiler, which Triton needs to compile launchers for its kernels."""

import os
import shutil
import sysconfig
from pathlib import Path


def why_no_launcher() -> str | None:
    """Return why this machine cannot compile a launcher, a C file that includes Python.h; None if it can."""
    named = os.environ.get("CC")  # Triton takes $CC, or else one of these
    if not any(map(shutil.which, [named] if named else ["gcc", "clang"])):
        return f"CC={named} is not found: set another, or unset it" if named else "no C compiler is found: install gcc"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is not found: install python3-dev"
    return None
