"""Checkpoints: their store on disk, their tensors, saving and resuming."""
