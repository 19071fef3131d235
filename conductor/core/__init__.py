"""The vocabulary: enumerations, models, messages, state, channels, exceptions, configuration."""
