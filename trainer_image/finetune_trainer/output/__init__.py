"""What a run leaves: the export, its manifest, model card and report."""
