"""The corpus of hostile and odd requests, as data: one module per subject, each with its `CASES`."""
