"""The `balora` command: one file per verb, each as thin as it can be."""
