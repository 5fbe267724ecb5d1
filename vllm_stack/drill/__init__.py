"""The drill: faults done to a running stack on purpose, under traffic, and a judgement of what was seen."""
