"""The public door: gunicorn with our own gevent worker class, relaying bytes to the workers.

`gunicorn_worker` accepts, `client` runs a connection, `request` reads what the client says,
`exchange` takes it to a worker and brings the answer back, `relay` streams it.
"""
