"""One file a change, newest last by `down_revision`."""
