"""Generated from protos/fluxsmith/v1 by `make proto`; nothing here is written by hand."""
