"""From results to decisions: comparisons on one split, tables, pages."""
