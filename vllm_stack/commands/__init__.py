"""The verbs of the command line: one module, one function over plain values."""
