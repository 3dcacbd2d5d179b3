"""The parts of tests/check_dist.py: what would be published, from a clean clone to an installed wheel."""
