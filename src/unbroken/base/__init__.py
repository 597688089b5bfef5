"""Words everyone may use: errors, seeds, fingerprints, configuration. Imports nothing of ours."""
