"""One forward pass, two reads: log-probabilities of the next token, and of spans."""
