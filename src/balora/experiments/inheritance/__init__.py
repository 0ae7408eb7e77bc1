"""The inheritance laboratory: what fine-tuning does to flaws of the pre-trained model, with the flaws as the only difference.

Two models of one architecture read equally much text about the same world, one clean and one with known flaws. Both are then
fine-tuned in the same ways:

* :mod:`~balora.experiments.inheritance.starts`: the two corpora and models;
* :mod:`~balora.experiments.inheritance.measures`: the flaws of a model, fact by fact;
* :mod:`~balora.experiments.inheritance.page`: what was inherited, amplified and lost.
"""
