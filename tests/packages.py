"""Changes of files that torch.save wrote, and of the training configurations in them."""

import json

import torch
from omegaconf import OmegaConf


def change_package(path, change):
    """Call `change` with the dictionary in `path`, and save it again."""
    package = torch.load(path, weights_only=False)
    change(package)
    torch.save(package, path)


def change_config(path, settings):
    """Set `settings` (dotted name -> value) in the training configuration of `path`."""

    def change(package):
        config = OmegaConf.create(package["xp.cfg"])
        for name, value in settings.items():
            OmegaConf.update(config, name, value, merge=False, force_add=True)
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    change_package(path, change)


def change_json(path, change):
    """Call `change` with the document in `path`, and write it again."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
