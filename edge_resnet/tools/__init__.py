"""Command lines over pipeline/: one module a tool, ``main(argv) -> int``, --help with an example, --json for programs."""
