"""The options of the installed vLLM, and those among the user's that it does not have."""
