"""The commands of ``finetune`` that talk to a cluster, one module each, loaded when it is called."""
