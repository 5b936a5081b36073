"""Build hook: adds detectron2 to the project's dependencies.

detectron2 is not on the package registry under its own name. Where the environment has none, the
dependency is a wheel repacked into the cache (tools/repack_detectron2.py), named by its path; metadata
built here is therefore for this machine, and not for publishing.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def _load_repack(root: Path) -> ModuleType:
    # The project root is not on the path of a build.
    spec = importlib.util.spec_from_file_location("repack_detectron2", root / "tools" / "repack_detectron2.py")
    if spec is None or spec.loader is None:
        raise ImportError("tools/repack_detectron2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Detectron2Dependency(MetadataHookInterface):
    """Sets `dependencies` to the listed ones and what detectron2 takes."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the dependencies; ends the build with one line where detectron2 cannot be obtained."""
        repack = _load_repack(Path(self.root))
        try:
            detectron2 = repack.requirements()
        except repack.RepackError as error:
            raise SystemExit(f"error: {error}") from None
        metadata["dependencies"] = [*self.config["dependencies"], *detectron2]
