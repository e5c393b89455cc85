"""Models as descriptions: facts from `config.json`, one decoder that asks the facts and never the name."""
