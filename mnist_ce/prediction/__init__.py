"""Network and detector choose among what the reader proposes: predictions for images."""
