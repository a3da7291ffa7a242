"""What a run reports: progress, metrics, TensorBoard, console, logs and warnings."""
