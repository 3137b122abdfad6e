"""Modules that have moved: their old names import the new ones.

An entry per module; `import molrmog.mixture` gives the very module `molrmog.laws.molrmog`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "molrmog.gates": "molrmog.laws.responsibilities",
    "molrmog.head_tail": "molrmog.laws.head_tail",
    "molrmog.law": "molrmog.laws.base",
    "molrmog.mixture": "molrmog.laws.molrmog",
    "molrmog.sampling.front_door": "molrmog.sampling.draw",
    "molrmog.top_modes": "molrmog.laws.top_modes",
}


class _OldNames(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Let imports find the old names."""
    sys.meta_path.append(_OldNames())
