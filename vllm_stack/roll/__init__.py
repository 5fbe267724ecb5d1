"""Restarting a running stack, one worker at a time, so that nobody notices."""
