"""Where a worker runs: devices, CPU, process group, and the request to stop."""
