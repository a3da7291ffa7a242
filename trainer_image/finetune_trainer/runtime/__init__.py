"""The worker process: engine, devices, CPU, process group, parallel training, and the request to stop."""
