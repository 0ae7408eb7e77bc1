"""The `balora` command: one file per verb, each as thin as it can be."""

import logging

# peft imports bitsandbytes where it is installed, which looks for a faster kernel on a hub and warns of having none.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
