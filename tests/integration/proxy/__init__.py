"""The real proxy, under gunicorn, before scripted workers."""
