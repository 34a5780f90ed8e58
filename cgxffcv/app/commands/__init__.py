"""The larger commands, main(prog, arguments) of each; the two scripts run `write` and `train`."""
