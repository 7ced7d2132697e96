"""The classes and functions of audiocraft that are used; all other modules import them from here.

audiocraft imports xformers for attention kernels, which are never called here. xformers has wheels
for one platform only and pins torch. Where it is not installed, as in the image, a stand-in module
defines the names that audiocraft imports.
"""

import importlib.util
import logging
import sys
from types import ModuleType

import torch


def _stand_in() -> dict[str, ModuleType]:
    ops = ModuleType("xformers.ops")
    vars(ops).update(
        unbind=torch.unbind,
        LowerTriangularMask=type("LowerTriangularMask", (), {}),
        memory_efficient_attention=None,
    )
    package = ModuleType("xformers")
    vars(package)["ops"] = ops
    return {"xformers": package, "xformers.ops": ops}


# xformers warns that its compiled extensions do not match this torch; they are not used.
logging.getLogger("xformers").setLevel(logging.ERROR)
# The stand-in is there already if an earlier import of this module failed.
if "xformers" not in sys.modules and importlib.util.find_spec("xformers") is None:
    sys.modules.update(_stand_in())

from audiocraft.models.builders import (  # noqa: E402  # imported after the stand-in is in place
    get_compression_model,
    get_diffusion_model,
    get_processor,
)
from audiocraft.models.lm import LMModel  # noqa: E402
from audiocraft.models.unet import DiffusionUnet  # noqa: E402
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import (  # noqa: E402
    ConditionFuser,
    ConditioningAttributes,
    ConditioningProvider,
)
from audiocraft.modules.diffusion_schedule import (  # noqa: E402
    MultiBandProcessor,
    NoiseSchedule,
    SampleProcessor,
    betas_from_alpha_bar,
)
from audiocraft.utils.autocast import TorchAutocast  # noqa: E402

__all__ = [
    "ConditionFuser",
    "ConditioningAttributes",
    "ConditioningProvider",
    "DelayedPatternProvider",
    "DiffusionUnet",
    "LMModel",
    "MultiBandProcessor",
    "NoiseSchedule",
    "SampleProcessor",
    "TorchAutocast",
    "betas_from_alpha_bar",
    "get_compression_model",
    "get_diffusion_model",
    "get_processor",
]
