"""The quickstart: an offline world, a tiny model pre-trained on its text, and a small noisy task to fine-tune it on.

* :mod:`~balora.experiments.quickstart.corpus`: the text, its ground truth and its known flaws;
* :mod:`~balora.experiments.quickstart.task`: what the model is fine-tuned on, and how it is scored;
* :mod:`~balora.experiments.quickstart.packing`: token blocks for pre-training and for measuring drift;
* :func:`model_folder`: the packaged model and tokenizer, made by ``scripts/pretrain_quickstart.py``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from balora.errors import BALoraError

__all__ = ["model_folder"]


def model_folder() -> Path:
    """The folder of the packaged model, ready for ``from_pretrained``.

    Raises:
        BALoraError: The package was installed without its model, or is run from inside an archive.

    Example:
        >>> (model_folder() / "config.json").is_file()
        True
    """
    folder = Path(str(resources.files(__name__) / "assets" / "model"))
    if not (folder / "model.safetensors").is_file():
        raise BALoraError(
            f"The quickstart's model is missing from {folder}; install balora as an unpacked package, or make the "
            "model with scripts/pretrain_quickstart.py."
        )
    return folder
