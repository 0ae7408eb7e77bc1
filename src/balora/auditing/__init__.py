"""`balora audit`: what fine-tuning changed, measured on a tuned model and its base.

* :mod:`~balora.auditing.options`: settings of an audit;
* :mod:`~balora.auditing.audit`: the measures in their order, the result and its files;
* :mod:`~balora.auditing.model_pair`: the two models, one after the other or as two states of one set of weights;
* :mod:`~balora.auditing.verdicts`: the margins, and what makes a question unchanged, changed or doubtful;
* :mod:`~balora.auditing.bounds`: the bounds of ``--fail-if``.
"""
