"""What must hold before a stack is started, each as one row: what was measured, and what to do about it."""
