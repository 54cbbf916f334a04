"""Results for people: tables, lines, pictures."""
