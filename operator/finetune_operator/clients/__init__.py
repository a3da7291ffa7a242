"""The only I/O: the Kubernetes API, Ray dashboards, and what was last seen of watched objects."""
