"""MusicGen inference: a request in, normalized audio files out. Knows nothing of Cog."""

import sys
from types import ModuleType, SimpleNamespace

# audiocraft imports xformers for attention kernels that are never called here. Its wheels exist
# for one platform, tie the torch version and take seconds to import, so an empty one stands in.
_xformers = ModuleType("xformers")
vars(_xformers)["ops"] = SimpleNamespace()
sys.modules.setdefault("xformers", _xformers)
