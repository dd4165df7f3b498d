"""verl's own classes, from its wheel."""
