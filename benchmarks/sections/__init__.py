"""One module per section; each has `measure(quick) -> Section`."""
