"""Forms in which models are exported, one file each; `names` finds every file in this folder.

Contract of each file:
- `NEEDS: Packages` are the packages that load the form, for its check.
- `WRITE_NEEDS: Packages` is optional: those that also write the form.
- `check_needs(bundle: Bundle) -> Packages` is optional: further packages that the check of this model needs.
- `write(bundle: Bundle, folder: Path) -> None` writes the files of the form into an empty folder. If the form cannot
  express the model, it raises a UserError that gives the reason and names the form that can.
- `transform(bundle: Bundle) -> EvalTransform` is optional: the transform that the form defines, if it is not exactly
  ours. docs/NUMERICS.md says how they differ.
- `read(folder: Path, allow: Collection[str] = ()) -> Read` loads the folder with the form's own library. Nothing of
  OpenSLIP computes there. `allow` has import paths of the user's own classes, for a form that names classes.
"""

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """List the names of all forms, which are their file names."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """Import the module of a form."""
    return importlib.import_module(f"openslip.export.forms.{name}")
