"""The way to Ray: what Ray Serve is told, and the program that holds up a box of its cluster."""
