"""What the two scripts and the command line are made of: from a configuration to a run that reports."""
