"""The model: where it is, what its own files say, and whether GPUs hold it."""
