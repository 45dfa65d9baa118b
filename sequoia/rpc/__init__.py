"""gRPC: servers, channels, errors, and the only code that knows protobuf messages."""
