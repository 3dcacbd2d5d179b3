"""Tests of the language model: they need the packages of the extra ``models``."""
