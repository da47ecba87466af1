"""Other people's models: names, the hub, families of generators, chat models."""
