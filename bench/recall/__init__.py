"""Which settings make a model recall a document soonest."""
