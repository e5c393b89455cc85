"""What was observed, and what of it is believed: from one look at the world to rates, lengths and loads."""
