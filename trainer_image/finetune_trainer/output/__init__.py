"""The result of a run: the export, its manifest, model card and report."""
