"""The keys of clients and of the workers."""
