"""What a run tells while it goes on: progress, metrics, TensorBoard, console and logs."""
