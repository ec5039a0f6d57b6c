"""Small named parts that objectives are composed of; each is a formula with its source, and knows no method."""
