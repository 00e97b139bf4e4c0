"""SmolLM2-135M as a second family: base, tasks, full fine-tunes."""
