"""The OpenAI-compatible HTTP API of the router: translates, and leaves the work to `generation`. See docs/openai.md."""
