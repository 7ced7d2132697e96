"""Blocks the import of every installed package but torch, Triton, NumPy, pytest and their own."""

import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

ALLOWED = ("torch", "triton", "numpy", "pytest")


def with_requirements(name, found):
    """Add a distribution and all that it requires."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        requirements = distribution(key).requires or []
    except PackageNotFoundError:
        return
    found.add(key)
    for requirement in requirements:
        if "extra ==" not in requirement:
            with_requirements(re.match(r"[\w.-]+", requirement)[0], found)


class OnlyAllowed:
    """A path finder that does not find the packages of other distributions."""

    def __init__(self):
        allowed = set()
        for name in ALLOWED:
            with_requirements(name, allowed)
        self.blocked = {
            package
            for package, names in packages_distributions().items()
            if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & allowed
        }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            return None
        return PathFinder.find_spec(name, path, target)

    def __getattr__(self, name):  # invalidate_caches, find_distributions
        return getattr(PathFinder, name)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyAllowed()
