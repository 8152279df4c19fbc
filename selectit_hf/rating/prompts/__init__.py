"""From a row to token ids: rating prompts, templates, and where the rating stands."""
