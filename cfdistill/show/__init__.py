"""What is shown of a study: figures, tables, and the answers themselves."""
