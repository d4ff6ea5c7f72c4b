"""Where questions come from: pairs, a server, the model itself, quizzes of the text."""
