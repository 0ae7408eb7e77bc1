"""The quickstart: an offline world, a tiny model pre-trained on text about it, and a small noisy task for fine-tuning.

* :mod:`~balora.experiments.quickstart.corpus`: the text, its ground truth and its known flaws;
* :mod:`~balora.experiments.quickstart.task`: the rows for fine-tuning, and their score;
* :mod:`~balora.experiments.quickstart.bias_probes`: the model's probabilities where the corpus is flawed;
* :mod:`~balora.experiments.quickstart.pipeline`: the command `balora quickstart`;
* :func:`model_directory`: the packaged model and tokenizer, made by ``scripts/pretrain_quickstart.py``.
"""

from importlib import resources
from pathlib import Path

from balora.errors import BALoraError

__all__ = ["model_directory"]


def model_directory() -> Path:
    """Return the directory of the packaged model, for ``from_pretrained``.

    Raises:
        BALoraError: The package was installed without its model, or is imported from an archive.

    Example:
        >>> (model_directory() / "config.json").is_file()
        True
    """
    directory = Path(str(resources.files(__name__) / "assets" / "model"))
    if not (directory / "model.safetensors").is_file():
        raise BALoraError(
            f"The quickstart's model is missing from {directory}. Install balora as an unpacked package, or make the model with "
            "scripts/pretrain_quickstart.py."
        )
    return directory
