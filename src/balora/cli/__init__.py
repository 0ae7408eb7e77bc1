"""The `balora` command. A verb imports torch and transformers only after its input has been checked."""

import logging

# peft imports bitsandbytes if it is installed, which looks for a faster kernel on a hub and warns if there is none.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# The hub's client reports each of its retries; balora's own message says that the hub cannot be reached.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
