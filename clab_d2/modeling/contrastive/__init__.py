"""CLAB's training branch: what is contrasted, the loss, and its weight over time."""
