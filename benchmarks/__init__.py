"""What the proxy costs beside other proxies; never part of the package that is installed."""
