"""How a stack is, judged from what was seen of it; pure, but for the values that others read."""
