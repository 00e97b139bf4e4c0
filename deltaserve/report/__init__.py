"""The quality report of a compression as a page for people: pure functions of its JSON, free of torch."""
