"""One-stage heads: networks of two towers, what is learned from them, and what is selected."""
