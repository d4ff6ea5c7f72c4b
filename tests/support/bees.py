"""A document of two sentences, and questions on it."""

TEXT = "Marta Quellin keeps bees on the roof of the old mill. Every June she gives the honey away."
PAIRS = [("Who keeps bees?", "Marta Quellin"), ("When is the honey given away?", "In June")]
