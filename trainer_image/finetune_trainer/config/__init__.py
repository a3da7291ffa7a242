"""What a run is asked to do: the finetuning YAML, its schema, and the options of the command line."""
