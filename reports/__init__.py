"""For people and for other programs: an `Audit` becomes tables, text and files."""
