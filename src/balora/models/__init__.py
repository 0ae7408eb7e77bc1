"""Access to transformers models: hidden states, heads, precision and sharding."""
