"""How sure a score or a difference is: results by item, standard errors, paired intervals, McNemar's test, Holm's correction."""
