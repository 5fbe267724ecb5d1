"""The wrapper around one vLLM server: a clean box before, the whole tree reaped after."""
