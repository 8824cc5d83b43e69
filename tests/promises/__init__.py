"""What the package promises, one file per promise, tested from outside through public names."""
