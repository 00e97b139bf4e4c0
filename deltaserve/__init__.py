"""DeltaServe: serve many full-model fine-tunes of one base LLM from few GPUs."""

__version__ = "0.1.0"
