"""The command line: a table of commands, one file each; what is heavy is imported inside a command."""
