"""Synthetic H&E slides with known tumour outlines: the demo's cohort and the tests' slides."""
