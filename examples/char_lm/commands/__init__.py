"""The commands of the program, a module each, with one function ``run(options) -> exit code``."""
