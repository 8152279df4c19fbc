"""From rows as people have them to rows as trainers read them."""
