"""The verbs as the command line spells them; what they do is in `commands`, loaded when it is asked for."""
