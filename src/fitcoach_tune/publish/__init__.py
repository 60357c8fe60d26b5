"""What goes to the Hub: which files of a run, the cards, merged weights, rows as a dataset, and the commit itself."""
