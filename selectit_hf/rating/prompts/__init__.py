"""From a row to token ids: rating prompts, templates, and the position of the rating."""
