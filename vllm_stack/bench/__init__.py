"""A load test of a running stack: what clients of the door wait for, and what of it is the proxy's."""
