"""Resource kinds: schemas, defaulting, validation, protobuf decoding, tables."""
