"""The stack under attack: real supervisord, real gunicorn, a fake vLLM with vLLM's process tree."""
