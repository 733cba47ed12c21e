"""Tables, importances and a budget become a plan: an exact choice of widths, with a certificate."""
