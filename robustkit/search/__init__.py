"""Everything that moves a point in search of an adversarial example."""
