"""The built book in a real browser: run by `make test-docs`, not by `make test`."""
